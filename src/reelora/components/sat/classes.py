"""The classes that a SAT config may name, as tables: which parameters they have and which values diffusers can do as well.

Sources: CogVideo at db498073 (1.0) and 7a1af71 (1.5): sat/configs, sat/dit_video_concat.py, sat/diffusion_video.py, sat/sgm,
sat/vae_modules; SwissArmyTransformer 0.4.12, sat/model/finetune/lora2.py.
"""

from collections.abc import Mapping
from typing import Any

from .reading import Param, SatClass

__all__ = [
    "ADALN",
    "CONDITIONER",
    "DDIM",
    "DECODER",
    "DENOISER",
    "DISCRETIZATION",
    "DPM",
    "DYNAMIC_GUIDER",
    "ENCODER",
    "FINAL_LAYER",
    "FIRST_STAGE",
    "IDENTITY_FIRST_STAGE",
    "LORA",
    "MODEL",
    "NETWORK",
    "PATCHES",
    "REGULARIZER",
    "ROTARY",
    "SCALING",
    "SINE_TABLE",
    "T5",
    "VANILLA_GUIDER",
    "WEIGHTING",
]

ADALN = "dit_video_concat.AdaLNMixin"
SINE_TABLE = "dit_video_concat.Basic3DPositionEmbeddingMixin"
NETWORK = "dit_video_concat.DiffusionTransformer"
FINAL_LAYER = "dit_video_concat.FinalLayerMixin"
PATCHES = "dit_video_concat.ImagePatchEmbeddingMixin"
ROTARY = "dit_video_concat.Rotary3DPositionEmbeddingMixin"
LORA = "sat.model.finetune.lora2.LoraMixin"
IDENTITY_FIRST_STAGE = "sgm.models.autoencoder.IdentityFirstStage"
CONDITIONER = "sgm.modules.GeneralConditioner"
DENOISER = "sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser"
SCALING = "sgm.modules.diffusionmodules.denoiser_scaling.VideoScaling"
WEIGHTING = "sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting"
DISCRETIZATION = "sgm.modules.diffusionmodules.discretizer.ZeroSNRDDPMDiscretization"
DYNAMIC_GUIDER = "sgm.modules.diffusionmodules.guiders.DynamicCFG"
VANILLA_GUIDER = "sgm.modules.diffusionmodules.guiders.VanillaCFG"
DPM = "sgm.modules.diffusionmodules.sampling.VPSDEDPMPP2MSampler"
DDIM = "sgm.modules.diffusionmodules.sampling.VideoDDIMSampler"
T5 = "sgm.modules.encoders.modules.FrozenT5Embedder"
FIRST_STAGE = "vae_modules.autoencoder.VideoAutoencoderInferenceWrapper"
DECODER = "vae_modules.cp_enc_dec.ContextParallelDecoder3D"
ENCODER = "vae_modules.cp_enc_dec.ContextParallelEncoder3D"
REGULARIZER = "vae_modules.regularizers.DiagonalGaussianRegularizer"

MOST, MOST_LAYERS, MOST_LEVELS, MOST_LATENTS, MOST_FRAMES = 1_000_000, 1_000, 8, 10_000, 100_000
"""A YAML could otherwise ask for a network that takes for ever to describe."""

_TRAINING = "only training has a use for it"
_SPEED = "it says how to compute, not what"
_SAMPLING = "it is given for each video"


def _is_count(value: Any, most: int = MOST) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _count(default: Any = None, *, most: int = MOST) -> Param:
    must = f"a whole number from 1 to {most:,}"
    return Param(test=lambda value: _is_count(value, most), must=must, default=default, is_required=default is None)


def _optional_count() -> Param:
    return Param(test=lambda value: value is None or _is_count(value), must=f"a whole number from 1 to {MOST:,}")


def _number(default: float | None = None) -> Param:
    return Param(test=_is_number, must="a number above 0", default=default, is_required=default is None)


def _fixed(value: Any, *, is_required: bool = False) -> Param:
    """A parameter of which diffusers' classes know one value only."""
    is_it = lambda given: type(given) in (type(value), int, float) and given == value  # noqa: E731
    return Param(
        test=is_it if value is not None else lambda given: given is None,
        must=str(value),
        default=value,
        is_required=is_required,
    )


def _flag(default: bool) -> Param:
    return Param(test=lambda value: type(value) is bool, must="true or false", default=default)


def _text() -> Param:
    return Param(test=lambda value: isinstance(value, str) and bool(value), must="a path", is_required=True)


def _made(*classes: SatClass, is_required: bool = False, is_list: bool = False) -> Param:
    return Param(classes=classes, is_required=is_required, is_list=is_list)


def _unused(reason: str) -> Param:
    return Param(unused=reason)


def _plain(**params: Param) -> SatClass:
    return SatClass(target="", params=params)


def _class(target: str, beside: Mapping[str, Param] | None = None, **params: Param) -> SatClass:
    return SatClass(target=target, params=params, beside=beside or {})


def _is_patch(value: Any) -> bool:
    sizes = value if isinstance(value, list) else [1, value, value]
    return len(sizes) == 3 and all(map(_is_count, sizes)) and sizes[1] == sizes[2]


_PATCH = Param(test=_is_patch, must="a whole number or [time, side, side]", is_required=True)
_WIDTHS = Param(
    test=lambda value: isinstance(value, list) and 1 <= len(value) <= MOST_LEVELS and all(map(_is_count, value)),
    must=f"a list of at most {MOST_LEVELS} whole numbers",
    is_required=True,
)
_LAYERS = Param(
    test=lambda value: value is None or (isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)),
    must="a list of layers",
)

_DISCRETIZATION = _class(
    DISCRETIZATION,
    linear_start=_number(0.00085),
    linear_end=_number(0.0120),
    num_timesteps=_fixed(1000),
    shift_scale=_number(1.0),
    keep_start=_fixed(False),
    post_shift=_fixed(False),
)
_DENOISER = _class(
    DENOISER,
    num_idx=_fixed(1000, is_required=True),
    quantize_c_noise=_fixed(False, is_required=True),
    do_append_zero=_fixed(False),
    flip=_fixed(True),
    weighting_config=_unused(_TRAINING),
    scaling_config=_made(_class(SCALING), is_required=True),
    discretization_config=_made(_DISCRETIZATION, is_required=True),
)

_LORA = _class(
    LORA,
    r=_count(),
    lora_alpha=Param(test=lambda value: value is None or _is_number(value), must="a number above 0"),
    lora_dropout=_unused(_TRAINING),
    layer_range=_LAYERS,
    qlora=_fixed(False),
    cross_attention=_unused("CogVideoX has none"),
)
_MODULES = _plain(
    pos_embed_config=_made(
        _class(
            SINE_TABLE,
            text_length=_count(most=MOST_FRAMES),
            height_interpolation=Param(test=lambda value: value is None or _is_number(value), must="a number above 0"),
            width_interpolation=Param(test=lambda value: value is None or _is_number(value), must="a number above 0"),
            time_interpolation=Param(test=lambda value: value is None or _is_number(value), must="a number above 0"),
        ),
        _class(
            ROTARY,
            hidden_size_head=_count(),
            text_length=_count(most=MOST_FRAMES),
            theta=_fixed(10000),
            rot_v=_fixed(False),
            learnable_pos_embed=_flag(False),
            height_interpolation=_unused("rotary positions have none"),
            width_interpolation=_unused("rotary positions have none"),
            time_interpolation=_unused("rotary positions have none"),
        ),
        is_required=True,
    ),
    patch_embed_config=_made(_class(PATCHES, text_hidden_size=_count(), bias=_fixed(True)), is_required=True),
    adaln_layer_config=_made(_class(ADALN, qk_ln=_fixed(True)), is_required=True),
    final_layer_config=_made(_class(FINAL_LAYER), is_required=True),
    lora_config=_made(_LORA),
)
_TRANSFORMER_ARGS = _plain(
    checkpoint_activations=_unused(_SPEED),
    checkpoint_num_layers=_unused(_SPEED),
    vocab_size=_unused("there are no words"),
    max_sequence_length=_count(64),
    layernorm_order=_fixed("pre", is_required=True),
    layernorm_epsilon=_number(1e-5),
    skip_init=_unused(_SPEED),
    model_parallel_size=_unused("the files of the checkpoint say it"),
    is_decoder=_fixed(False),
    hidden_dropout=_unused(_TRAINING),
    attention_dropout=_unused(_TRAINING),
    drop_path=_unused(_TRAINING),
)
_NETWORK = _class(
    NETWORK,
    time_embed_dim=_optional_count(),
    ofs_embed_dim=_optional_count(),
    elementwise_affine=_fixed(True, is_required=True),
    num_frames=_count(most=MOST_FRAMES),
    time_compressed_rate=_count(),
    latent_width=_count(most=MOST_LATENTS),
    latent_height=_count(most=MOST_LATENTS),
    num_layers=_count(most=MOST_LAYERS),
    patch_size=_PATCH,
    in_channels=_count(),
    out_channels=_count(),
    hidden_size=_count(),
    adm_in_channels=_unused("there are no classes"),
    num_attention_heads=_count(),
    num_classes=_fixed(None),
    input_time=_fixed("adaln"),
    parallel_output=_unused(_SPEED),
    height_interpolation=_number(1.0),
    width_interpolation=_number(1.0),
    time_interpolation=_number(1.0),
    use_SwiGLU=_fixed(False),
    use_RMSNorm=_fixed(False),
    zero_init_y_embed=_unused(_TRAINING),
    dtype=_unused("the checkpoint and the caller say it"),
    transformer_args=_made(_TRANSFORMER_ARGS, is_required=True),
    modules=_made(_MODULES, is_required=True),
)

_T5 = _class(
    T5,
    beside={
        "is_trainable": _unused(_TRAINING),
        "input_key": _unused("there is one input"),
        "ucg_rate": _unused(_TRAINING),
        "legacy_ucg_value": _fixed(None),
    },
    model_dir=_text(),
    max_length=_count(77),
    device=_unused("the caller says it"),
    freeze=_unused(_TRAINING),
    cache_dir=_unused("nothing is downloaded"),
)
_CONDITIONER = _class(
    CONDITIONER,
    emb_models=_made(_T5, is_required=True, is_list=True),
    cor_embs=_fixed([]),
    cor_p=_fixed([]),
)


def _coder(name: str) -> SatClass:
    return _class(
        name,
        double_z=_fixed(True),
        z_channels=_count(),
        resolution=_unused("only attention would need it"),
        in_channels=_count(),
        out_ch=_count(),
        ch=_count(),
        ch_mult=_WIDTHS,
        attn_resolutions=_fixed([], is_required=True),
        num_res_blocks=_count(most=MOST_LAYERS),
        dropout=_unused(_TRAINING),
        resamp_with_conv=_fixed(True),
        pad_mode=_fixed("first"),
        temporal_compress_times=_count(4),
        gather_norm=_unused(_SPEED),
        give_pre_end=_fixed(False),
        zq_ch=_fixed(None),
        add_conv=_fixed(False),
    )


_FIRST_STAGE = _class(
    FIRST_STAGE,
    cp_size=_unused(_SPEED),
    ckpt_path=_text(),
    ignore_keys=_unused("what is not the VAE's is known"),
    loss_config=_unused(_TRAINING),
    regularizer_config=_made(_class(REGULARIZER, sample=_flag(True))),
    encoder_config=_made(_coder(ENCODER)),
    decoder_config=_made(_coder(DECODER)),
)


def _guider(target: str, **params: Param) -> SatClass:
    return SatClass(target=target, params={"scale": _number(), "dyn_thresh_config": _fixed(None), **params})


def _sampler(name: str) -> SatClass:
    return _class(
        name,
        num_steps=_count(50),
        verbose=_unused(_SPEED),
        device=_unused("the caller says it"),
        fixed_frames=_fixed(0),
        sdedit=_fixed(False),
        discretization_config=_made(_DISCRETIZATION, is_required=True),
        guider_config=_made(
            _guider(DYNAMIC_GUIDER, exp=_number(), num_steps=_count()),
            _guider(VANILLA_GUIDER),
            is_required=True,
        ),
    )


MODEL = _plain(
    network_config=_made(_NETWORK, is_required=True),
    network_wrapper=_fixed(None),
    denoiser_config=_made(_DENOISER, is_required=True),
    conditioner_config=_made(_CONDITIONER),
    first_stage_config=_made(_FIRST_STAGE, _class(IDENTITY_FIRST_STAGE)),
    sampler_config=_made(_sampler(DPM), _sampler(DDIM)),
    loss_fn_config=_unused(_TRAINING),
    scale_factor=_number(1.0),
    latent_input=_unused(_TRAINING),
    disable_first_stage_autocast=_unused(_SPEED),
    not_trainable_prefixes=_unused(_TRAINING),
    lr_scale=_unused(_TRAINING),
    lora_train=_unused(_TRAINING),
    compile_model=_unused(_SPEED),
    en_and_decode_n_samples_a_time=_unused(_SPEED),
    noised_image_input=_unused(_TRAINING),
    noised_image_all_concat=_unused(_TRAINING),
    noised_image_dropout=_unused(_TRAINING),
    augmentation_dropout=_unused(_TRAINING),
    log_keys=_unused("nothing is logged"),
    input_key=_unused(_TRAINING),
    use_pd=_fixed(False),
)
"""The section ``model``."""
