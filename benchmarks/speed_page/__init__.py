"""docs/speed.md, generated from the results files of the tables of speeds."""
