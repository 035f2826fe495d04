"""Messages and services that coordinator and workers speak over the network."""
