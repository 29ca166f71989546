"""What an attach has done, for people."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from reelora.adapters import Advice, LoraSpec, share_of_layer

__all__ = ["AttachSummary"]


@dataclass(frozen=True, kw_only=True)
class AttachSummary:
    """What an attach has put on a model, and what to reconsider."""

    model_class: str
    role: str
    spec: LoraSpec
    shapes: Mapping[str, tuple[int, int]]
    """(out, in) of every Linear that got a branch, by path."""
    trainable_parameters: int
    total_parameters: int
    """The base's and the branches'."""
    advice: tuple[Advice, ...]
    roads: Mapping[str, str] = field(default_factory=dict)
    """How each branch runs beside its base, by path."""

    @property
    def num_modules(self) -> int:
        return len(self.shapes)

    @property
    def scale(self) -> float:
        return self.spec.scale

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of every line to print; each kind of layer with its share ``r (d + k) / (d k)``."""
        share = self.trainable_parameters / self.total_parameters
        return [
            ("model", f"{self.model_class} ({self.role})"),
            ("modules", f"{self.num_modules} Linears"),
            ("trainable", f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters ({share:.2%})"),
            ("scale", self._scale_text()),
            *(("layers", text) for text in self._layer_texts()),
            *(("branches", f"{count} {road}") for road, count in Counter(self.roads.values()).items()),
            *(("advice", str(advice)) for advice in self.advice),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{label:<10} {text}" for label, text in self.rows())

    def _scale_text(self) -> str:
        divisor = f"sqrt({self.spec.rank})" if self.spec.rslora else f"{self.spec.rank}"
        single = " (other ranks or alphas in single modules)" if self.spec.rank_pattern or self.spec.alpha_pattern else ""
        return f"alpha / rank = {self.spec.alpha:g} / {divisor} = {self.scale:g}{single}"

    def _layer_texts(self) -> list[str]:
        kinds = Counter((shape, self.spec.rank_of(path)) for path, shape in self.shapes.items())
        return [
            f"{count} of {out} x {inp}, rank {rank}: {rank * (out + inp):,} parameters each, "
            f"{share_of_layer(rank, (out, inp)):.2%} of the layer"
            for ((out, inp), rank), count in kinds.items()
        ]
