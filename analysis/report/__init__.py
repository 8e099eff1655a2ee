"""Reports: what is on file of runs and studies, as one page that opens without a network."""
