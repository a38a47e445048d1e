"""Questions on real recordings and pictures from Debian packages: `python -m echoink.data get open_media`."""
