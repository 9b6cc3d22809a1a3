"""One file per kind of stage; each names its class as `STAGE`."""
