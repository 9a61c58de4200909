"""The HTTP listener: metrics, probes, status page and admin API; over TCP and over the daemon's own Unix socket."""
