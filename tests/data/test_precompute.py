"""The content-keyed cache: never stale, never colliding, resumable, and made only where something is missing."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from disk import files_of_at_most
from encoders import NUM_TOKENS, Encoders, pooled, precompute, token_states
from films import cut, write_film, write_sound

from reelora.data import CachedClips, CacheSettings, ClipChoice, ClipSettings, list_clips, read_clip
from reelora.errors import DataError, FileFormatError

CLIP = ClipSettings(num_frames=9, height=16, width=16, fps=8)
SETTINGS = CacheSettings(clip=CLIP, vae_fingerprint="vae", text_fingerprint="t5", num_text_tokens=NUM_TOKENS)


def run(data: Path, cache: Path, settings: CacheSettings = SETTINGS, **options):
    """Precompute with fresh encoders; returns them with the summary."""
    encoders = options.pop("encoders", Encoders())
    return encoders, precompute(list_clips(data), cache, settings, **encoders.factories(), **options)


def content(cache: Path) -> dict[str, bytes]:
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


def entries(cache: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(cache).items() if name.endswith(".safetensors")}


def flip(path: Path) -> None:
    """Change the last bit of a file, which no header shows."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_cache_holds_what_the_encoders_gave(data_folder, cache):
    _, summary = run(data_folder, cache)
    clips = CachedClips(cache)
    assert (summary.num_clips, summary.encoded_videos, summary.encoded_prompts) == (3, 3, 4)
    assert clips.captions == ["a red star", "a blue star", "a star that grows"]
    for index, clip in enumerate(clips):
        frames, _ = read_clip(data_folder / clip["source"], num_frames=9, height=16, width=16, fps=8)
        assert torch.equal(clip["latent_mean"], pooled(frames[None])[0])
        assert torch.equal(clip["latent_std"], pooled(frames[None])[0].abs() + 0.5)
        assert torch.equal(clip["prompt_states"], token_states(clip["caption"]))
        assert clip["source"] == f"{index}.mp4"
    assert torch.equal(clips.empty_prompt_states, token_states(""))


def test_a_complete_cache_makes_no_encoder_and_changes_no_byte(data_folder, cache):
    run(data_folder, cache)
    before = content(cache)
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    encoders, summary = run(data_folder, cache)
    assert encoders.made == []
    assert content(cache) == before
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == times
    assert (summary.encoded_videos, summary.reused_videos, summary.encoded_prompts, summary.reused_prompts) == (0, 3, 0, 4)


@pytest.mark.parametrize("stop_at", [0, 3, 4, 6])
def test_after_ctrl_c_anywhere_the_next_run_makes_only_the_rest_and_the_same_bytes(data_folder, cache, tmp_path, stop_at):
    encoders = Encoders(stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        run(data_folder, cache, encoders=encoders)
    with pytest.raises(DataError, match="no complete cache"):
        CachedClips(cache)
    assert not [name for name in content(cache) if "/." in name]
    # Four captions go through the encoder together: if one of them is stopped, all are made again.
    kept = 4 + encoders.videos if stop_at >= 4 else 0
    again, _ = run(data_folder, cache)
    assert again.videos + len(again.captions) == 7 - kept
    run(data_folder, tmp_path / "fresh")
    assert content(cache) == content(tmp_path / "fresh")


def test_batches_give_the_same_cache_as_single_clips(data_folder, cache, tmp_path):
    run(data_folder, cache, video_batch_size=2)
    run(data_folder, tmp_path / "single")
    assert content(cache) == content(tmp_path / "single")


@pytest.mark.parametrize("kind", ["latents", "prompts"])
def test_a_truncated_entry_is_made_anew_and_nothing_else_is(data_folder, cache, kind):
    run(data_folder, cache)
    before = content(cache)
    cut(sorted((cache / kind).iterdir())[0], 0.7)
    with pytest.raises(DataError, match=r"1 are truncated or replaced, first .*safetensors.*precompute"):
        CachedClips(cache)
    encoders, _ = run(data_folder, cache)
    assert encoders.videos + len(encoders.captions) == 1
    assert content(cache) == before


@pytest.mark.parametrize("kind", ["latents", "prompts"])
def test_an_entry_of_which_one_bit_changed_is_made_anew_and_nothing_else_is(data_folder, cache, kind):
    run(data_folder, cache)
    before = content(cache)
    flip(sorted((cache / kind).iterdir())[0])
    encoders, _ = run(data_folder, cache)
    assert encoders.videos + len(encoders.captions) == 1
    assert content(cache) == before


CHANGES = {
    "vae": ({"vae_fingerprint": "another"}, 3, 0),
    "text encoder": ({"text_fingerprint": "another"}, 0, 4),
    "tokens": ({"num_text_tokens": NUM_TOKENS}, 0, 0),
    "dtype": ({"dtype": torch.bfloat16}, 3, 4),
    "frames": ({"clip": replace(CLIP, num_frames=5)}, 3, 0),
    "what of a picture is cut off": ({"clip": replace(CLIP, fit="crop_end")}, 3, 0),
    "what follows the end of clips that are long enough": ({"clip": replace(CLIP, padding="loop")}, 0, 0),
    "which pieces of clips that are one piece": ({"choice": ClipChoice(kind="chunks")}, 0, 0),
    "buckets that no clip is nearest to": ({"sizes": ((9, 32, 16), (5, 16, 16))}, 0, 0),
    "a bucket that all are nearer to": ({"sizes": ((9, 16, 24),)}, 3, 0),
    "size": ({"clip": replace(CLIP, height=24)}, 3, 0),
    "rate": ({"clip": replace(CLIP, fps=7)}, 3, 0),
    "integer rate": ({"clip": replace(CLIP, fps=8.0)}, 0, 0),
    "least share": ({"clip": replace(CLIP, min_share=0.9)}, 0, 0),
}


@pytest.mark.parametrize(("change", "videos", "prompts"), CHANGES.values(), ids=CHANGES)
def test_a_setting_makes_anew_exactly_what_it_affects_and_the_old_entries_stay(data_folder, cache, change, videos, prompts):
    # CogVideo's key knows neither model nor dtype nor content (reference D3).
    run(data_folder, cache)
    before = content(cache)
    encoders, summary = run(data_folder, cache, replace(SETTINGS, **change))
    assert (encoders.videos, len(encoders.captions)) == (videos, prompts)
    assert summary.unused == ()  # the data set that was made before still uses its entries
    assert before.items() <= content(cache).items()
    assert len(CachedClips(summary.manifest)) == 3
    again, _ = run(data_folder, cache)
    assert again.made == []


def test_the_number_of_tokens_is_part_of_a_prompts_name():
    assert SETTINGS.prompt_facts("a") != replace(SETTINGS, num_text_tokens=226).prompt_facts("a")


def test_a_video_that_changed_under_its_old_name_is_encoded_again(data_folder, cache):
    run(data_folder, cache)
    write_film(data_folder / "1.mp4", 9, noise=99)
    encoders, summary = run(data_folder, cache)
    assert (encoders.videos, encoders.captions) == (1, [])
    latents = CachedClips(summary.manifest)[1]["latent_mean"]
    assert torch.equal(latents, pooled(read_clip(data_folder / "1.mp4", num_frames=9, height=16, width=16, fps=8)[0][None])[0])


def test_a_caption_that_changed_is_encoded_again_without_its_video(data_folder, cache):
    run(data_folder, cache)
    (data_folder / "1.txt").write_text("a green star")
    encoders, summary = run(data_folder, cache)
    assert (encoders.videos, encoders.captions) == (0, ["a green star"])
    assert CachedClips(summary.manifest).captions[1] == "a green star"


def test_a_new_name_or_place_of_the_same_data_costs_nothing(data_folder, cache, tmp_path):
    run(data_folder, cache)
    moved = data_folder.rename(tmp_path / "moved")
    (moved / "0.mp4").rename(moved / "z.mp4")
    (moved / "0.txt").rename(moved / "z.txt")
    encoders, summary = run(moved, cache)
    assert encoders.made == []
    assert CachedClips(summary.manifest).sources == ["1.mp4", "2.mp4", "z.mp4"]


def test_videos_of_one_stem_in_two_folders_do_not_collide_and_equal_ones_share_an_entry(tmp_path, cache):
    for name, noise in {"x": 1, "y": 2, "z": 2}.items():
        film = write_film(tmp_path / "data" / name / "film.mp4", 9, noise=noise)
        film.with_suffix(".txt").write_text("a film")
    encoders, summary = run(tmp_path / "data", cache)
    x, y, z = CachedClips(cache)
    assert not torch.equal(x["latent_mean"], y["latent_mean"])
    assert torch.equal(y["latent_mean"], z["latent_mean"])
    assert (encoders.videos, summary.num_clips, len(encoders.captions)) == (2, 3, 2)


def test_clips_that_cannot_be_used_are_all_named_before_anything_is_made(data_folder, cache):
    write_film(data_folder / "short.mp4", 2)
    write_sound(data_folder / "sound.mp4")
    for name in ["short", "sound"]:
        (data_folder / f"{name}.txt").write_text(name)
    encoders = Encoders()
    with pytest.raises(DataError, match=r"(?s)2 of 5 clips cannot be used.*short\.mp4.*sound\.mp4"):
        run(data_folder, cache, encoders=encoders)
    assert encoders.made == []
    assert not cache.exists()


def test_refused_clips_can_be_left_out_and_are_then_listed(data_folder, cache):
    write_film(data_folder / "short.mp4", 2)
    (data_folder / "short.txt").write_text("too short")
    encoders, summary = run(data_folder, cache, skip_refused=True)
    assert [refusal.name for refusal in summary.refusals] == ["short.mp4"]
    assert "too short" not in encoders.captions
    assert len(CachedClips(cache)) == summary.num_clips == 3
    for name in ["0", "1", "2"]:
        (data_folder / f"{name}.mp4").unlink()
        (data_folder / f"{name}.txt").unlink()
    with pytest.raises(DataError, match="1 of 1 clips cannot be used:"):
        run(data_folder, cache, skip_refused=True)


def test_a_stricter_least_share_refuses_a_clip_that_is_already_encoded(data_folder, cache):
    write_film(data_folder / "0.mp4", 6)
    run(data_folder, cache)
    with pytest.raises(DataError, match=r"0\.mp4: is too short"):
        run(data_folder, cache, replace(SETTINGS, clip=replace(CLIP, min_share=0.8)))


def test_a_run_on_changed_data_that_is_stopped_leaves_the_old_data_set_as_it_was(data_folder, cache):
    _, summary = run(data_folder, cache)
    before = CachedClips(summary.manifest).data_hash
    write_film(data_folder / "0.mp4", 9, noise=99)
    with pytest.raises(KeyboardInterrupt):
        run(data_folder, cache, encoders=Encoders(stop_at=0))
    assert CachedClips(cache).data_hash == before
    _, again = run(data_folder, cache)
    assert CachedClips(again.manifest).data_hash != before
    with pytest.raises(DataError, match="holds 2 data sets; give the path of one"):
        CachedClips(cache)


def test_a_refusal_leaves_the_manifest_of_the_old_data(data_folder, cache):
    run(data_folder, cache)
    before = content(cache)
    write_sound(data_folder / "0.mp4")
    with pytest.raises(DataError, match="sound only"):
        run(data_folder, cache)
    assert content(cache) == before


def test_values_that_are_not_finite_are_refused_by_name_and_not_stored(data_folder, cache):
    factories = Encoders().factories()
    factories["make_video_encoder"] = lambda: lambda frames: {"latent_mean": pooled(frames) / 0, "latent_std": pooled(frames)}
    with pytest.raises(DataError, match=r"0\.mp4: \d+ of \d+ values of its latent_mean are not finite as torch.float32"):
        precompute(list_clips(data_folder), cache, SETTINGS, **factories)
    assert list((cache / "latents").iterdir()) == []


def test_a_video_that_changes_while_the_job_runs_is_noticed(data_folder, cache):
    encoders = Encoders()
    factories = encoders.factories()

    def edit_then_make():
        write_film(data_folder / "0.mp4", 9, noise=99)
        return encoders.factories()["make_video_encoder"]()

    factories["make_video_encoder"] = edit_then_make
    with pytest.raises(DataError, match=r"0\.mp4: has changed since the start"):
        precompute(list_clips(data_folder), cache, SETTINGS, **factories)


def test_a_full_disk_is_an_os_error_that_leaves_no_half_file_and_is_resumed(data_folder, cache):
    with files_of_at_most(700), pytest.raises(OSError, match=r"latents"):  # prompts fit, latents do not
        run(data_folder, cache)
    assert len(entries(cache)) == 4
    assert not [name for name in content(cache) if "/." in name]
    encoders, _ = run(data_folder, cache)
    assert (encoders.videos, encoders.captions) == (3, [])


def test_a_cache_that_cannot_be_written_is_an_os_error_before_anything_is_encoded(data_folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    encoders = Encoders()
    with pytest.raises(OSError, match="cache"):
        run(data_folder, tmp_path / "cache", encoders=encoders)
    assert encoders.made == []


def test_progress_counts_to_a_total_that_does_not_change(data_folder, cache):
    seen = []
    run(data_folder, cache, on_progress=lambda done, total, name: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]  # 4 captions, 3 clips
    seen.clear()
    run(data_folder, cache, on_progress=lambda done, total, name: seen.append((done, total)))
    assert seen == []


def test_every_report_is_in_the_manifest(data_folder, cache):
    write_film(data_folder / "0.mp4", 6)
    _, summary = run(data_folder, cache)
    manifest = json.loads(summary.manifest.read_text())
    assert [change["kind"] for change in manifest["clips"][0]["report"]["changes"]] == ["padded", "resized", "cropped"]
    assert "the last is repeated 3 times" in str(summary.reports[0])
    assert str(data_folder) not in summary.manifest.read_text()


def test_leftovers_of_a_killed_process_are_listed_and_not_taken_for_entries(data_folder, cache):
    run(data_folder, cache)
    leftover = cache / "latents" / ".half.123456.safetensors"
    leftover.write_bytes(b"half")
    _, summary = run(data_folder, cache)
    assert summary.unused == (leftover,)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 9}', '{"version": 1, "settings": {}, "clips": [], "refused": [], "empty_prompt": "../x"}']
)
def test_a_file_that_is_no_manifest_is_refused_and_replaced_by_the_next_run(data_folder, cache, text):
    _, summary = run(data_folder, cache)
    summary.manifest.write_text(text)
    with pytest.raises(FileFormatError, match="is no manifest of a cache"):
        CachedClips(cache)
    encoders, _ = run(data_folder, cache)
    assert encoders.made == []
    assert len(CachedClips(cache)) == 3


def test_a_manifest_that_was_edited_is_refused(data_folder, cache):
    _, summary = run(data_folder, cache)
    summary.manifest.write_text(summary.manifest.read_text().replace("a red star", "a bad star"))
    with pytest.raises(FileFormatError, match="its text is not that which was written"):
        CachedClips(cache)


def test_a_complete_cache_opens_no_video(data_folder, cache, monkeypatch):
    run(data_folder, cache)
    monkeypatch.setattr("av.open", lambda *args, **options: pytest.fail("a video was opened"))
    assert run(data_folder, cache)[0].made == []


def test_facts_of_a_video_that_were_changed_on_the_disk_are_not_believed(data_folder, cache):
    _, summary = run(data_folder, cache)
    for path in (cache / "probes").iterdir():
        path.write_text(path.read_text().replace('"num_frames":9', '"num_frames":5').replace('"seconds":1.1', '"seconds":0.5'))
    assert run(data_folder, cache)[1].manifest == summary.manifest


def test_a_film_that_is_damaged_inside_is_found_while_others_are_encoded_and_named(data_folder, cache):
    film = data_folder / "0.mp4"
    spoil(film)
    encoders = Encoders()
    with pytest.raises(DataError, match=r"1 of 3 clips cannot be used \(data\.skip_refused = .*\):\n  .*0\.mp4.*is damaged"):
        run(data_folder, cache, encoders=encoders)
    assert encoders.videos == 2
    with pytest.raises(DataError, match="no complete cache"):
        CachedClips(cache)
    again, summary = run(data_folder, cache, skip_refused=True)
    assert again.videos == 0
    assert [refusal.name for refusal in summary.refusals] == ["0.mp4"]
    assert CachedClips(summary.manifest).sources == ["1.mp4", "2.mp4"]


def spoil(film: Path) -> None:
    """Overwrite the middle of the pictures of a film, whose index stays whole."""
    data = bytearray(film.read_bytes())
    start, stop = data.index(b"mdat") + 4, data.index(b"moov") if data.index(b"moov") > data.index(b"mdat") else len(data)
    third = (stop - start) // 3
    data[start + third : start + 2 * third] = bytes(third)
    film.write_bytes(data)


def test_several_captions_share_one_video_and_each_has_its_states(data_folder, cache):
    (data_folder / "0.txt").write_text("a red star\na ruby star")
    clips = list_clips(data_folder, caption_lines="apart")
    encoders = Encoders()
    summary = precompute(clips, cache, SETTINGS, **encoders.factories())
    cached = CachedClips(summary.manifest)
    assert (encoders.videos, len(encoders.captions)) == (3, 5)
    assert cached.num_captions == [2, 1, 1]
    assert torch.equal(cached.read(0, caption=1)["prompt_states"], token_states("a ruby star"))
    assert cached.read(0, caption=1)["caption"] == "a ruby star"


def test_pieces_of_one_video_are_clips_of_their_own_that_stay_on_one_side_of_a_split(data_folder, cache):
    write_film(data_folder / "0.mp4", 29)
    settings = replace(SETTINGS, choice=ClipChoice(kind="chunks"), sizes=((5, 16, 16),))
    _, summary = run(data_folder, cache, settings)
    cached = CachedClips(summary.manifest)
    assert cached.sources == ["0.mp4", "0.mp4@1.12s", "0.mp4@2.25s", "1.mp4", "2.mp4"]
    assert cached.buckets == ["9x16x16"] * 5
    assert [leftover.reason for leftover in summary.leftovers] == ["its last 2 frames are in no piece: too few for a bucket"]
    for seed in range(5):
        seen, held_out = cached.split(1, seed=seed)
        assert len({name.partition("@")[0] for name in held_out.sources}) == 1
        assert not {name.partition("@")[0] for name in held_out.sources} & {name.partition("@")[0] for name in seen.sources}


def test_two_jobs_at_once_leave_one_whole_cache(data_folder, cache):
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda _: run(data_folder, cache), range(4)))
    assert len({summary.manifest for _, summary in jobs}) == 1
    assert len(entries(cache)) == 7
    assert CachedClips(cache).verify() == []
    assert not [name for name in content(cache) if "/." in name]


def test_what_another_job_has_made_meanwhile_is_not_made_again(data_folder, cache):
    other = Encoders()
    factories = Encoders().factories()
    mine = Encoders()

    def make_after_the_other():
        run(data_folder, cache, encoders=other)
        return mine.factories()["make_video_encoder"]()

    summary = precompute(list_clips(data_folder), cache, SETTINGS, **{**factories, "make_video_encoder": make_after_the_other})
    assert (other.videos, mine.videos, summary.encoded_videos, summary.reused_videos) == (3, 0, 0, 3)


def test_a_data_set_of_one_clip_is_a_data_set(data_folder, cache):
    summary = precompute(list_clips(data_folder)[:1], cache, SETTINGS, **Encoders().factories())
    assert len(CachedClips(summary.manifest)) == 1


def test_no_clips_is_an_error(cache):
    with pytest.raises(DataError, match="no clip to encode"):
        precompute([], cache, SETTINGS, **Encoders().factories())
