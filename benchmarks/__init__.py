"""Side by side with diffusers + PEFT, in one run; ratios of medians, since machines are noisy."""
