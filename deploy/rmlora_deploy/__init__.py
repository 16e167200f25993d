"""Export, verification, measurement and the command line of rmlora-deploy."""
