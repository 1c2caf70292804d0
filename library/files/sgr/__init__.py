"""`.sgr`: the file of a photograph that a learned codec compressed. `FORMAT.md` has every byte of it."""
