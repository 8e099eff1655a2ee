"""The central flow of a run, held against its replayed steps."""
