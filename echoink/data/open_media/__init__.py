"""Real recordings and pictures out of Debian's packages, as questions: `python -m echoink.data get open_media`."""
