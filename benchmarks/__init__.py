"""Side by side with diffusers + PEFT, in one run; each step counts at its best, since what else a machine does only adds."""
