"""Training runs of the pocket model over films of noise, small enough for a test."""

from pathlib import Path

from films import write_film

from reelora.recipes import Silent, TrainConfig

__all__ = ["Lines", "changed", "small_config", "write_films"]


class Lines(Silent):
    """A listener that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.notes: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self.notes.append(note)


def write_films(folder: Path, *num_frames: int) -> Path:
    """Captioned films of these numbers of frames."""
    for index, count in enumerate(num_frames):
        write_film(folder / f"{index}.mp4", count, noise=index)
        (folder / f"{index}.txt").write_text(f"film number {index}")
    return folder


def small_config(output: Path, clips: Path, **settings: object) -> TrainConfig:
    """A run of rank 4 on the CPU, with other settings over it as ``changed`` takes them."""
    plain = {
        "output": output,
        "device": "cpu",
        "data": {"folder": clips},
        "lora": {"rank": 4, "alpha": 2},
        "loop": {"optimizer": {"learning_rate": 1e-3}},
    }
    return changed(TrainConfig.of(plain), **settings)


def changed(config: TrainConfig, **settings: object) -> TrainConfig:
    """The settings with others over them, by dotted name with two underscores: ``loop__steps=3``."""
    values = config.model_dump()
    for name, value in settings.items():
        *parents, leaf = name.split("__")
        table = values
        for parent in parents:
            table = table[parent]
        table[leaf] = value
    return TrainConfig.of(values)
