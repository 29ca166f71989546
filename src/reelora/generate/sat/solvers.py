"""SAT's samplers: one step from noisier latents to cleaner ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from reelora.shapes import Latents

from .schedule import SatSchedule

__all__ = ["SOLVERS", "Draw", "Step"]

Draw = Callable[[], Latents]
"""Gives fresh noise, other noise every time."""

Signal = Float[Tensor, ""]


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """Where a step begins and ends."""

    schedule: SatSchedule
    index: int

    @property
    def signal(self) -> Signal:
        return self.schedule.signals[self.index]

    @property
    def next_signal(self) -> Signal:
        return self.schedule.signals[self.index + 1]

    @property
    def is_last(self) -> bool:
        return self.index == len(self.schedule.timesteps) - 1

    @property
    def log_snr(self) -> Signal:
        """Half the logarithm of the signal-to-noise ratio; minus infinity where the step begins in pure noise."""
        return _log_snr(self.signal)

    @property
    def log_snr_gain(self) -> Signal:
        return _log_snr(self.next_signal) - self.log_snr

    @property
    def noise_ratio(self) -> Signal:
        return ((1 - self.next_signal**2) / (1 - self.signal**2)) ** 0.5

    def before(self) -> "Step":
        return Step(schedule=self.schedule, index=self.index - 1)


def _log_snr(signal: Signal) -> Signal:
    squared = signal**2
    return ((squared / (1 - squared)) ** 0.5).log()


def ddim(step: Step, x: Latents, clean: Latents, last_clean: Latents | None, draw: Draw) -> Latents:
    """DDIM without noise. Source: arXiv:2010.02502, equation 12; CogVideo, sampling.py (VideoDDIMSampler)."""
    return step.noise_ratio * x + (step.next_signal - step.signal * step.noise_ratio) * clean


def dpm(step: Step, x: Latents, clean: Latents, last_clean: Latents | None, draw: Draw) -> Latents:
    """SDE-DPM-Solver++(2M). Source: arXiv:2211.01095, section 5; CogVideo, sampling.py (VPSDEDPMPP2MSampler).

    As SAT it draws noise twice where it has a step behind it, and leaves the first. The last step is what is foreseen.
    """
    if step.is_last:
        return clean
    gain, noise = step.log_snr_gain, draw()
    decay = step.noise_ratio * (-gain).exp()
    weight = (-2 * gain).expm1() * step.next_signal
    spread = (1 - step.next_signal**2) ** 0.5 * (1 - (-2 * gain).exp()) ** 0.5
    if last_clean is not None:
        ratio = step.before().log_snr_gain / gain
        clean, noise = (1 + 1 / (2 * ratio)) * clean - 1 / (2 * ratio) * last_clean, draw()
    return decay * x - weight * clean + spread * noise


SOLVERS: Mapping[str, Callable[[Step, Latents, Latents, Latents | None, Draw], Latents]] = {"dpm": dpm, "ddim": ddim}
"""One step: the latents, the clip that is foreseen from them, and the one that was foreseen in the step before."""
