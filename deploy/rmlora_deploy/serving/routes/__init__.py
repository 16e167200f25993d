"""The interfaces that clients speak, one file each."""
