from pathlib import Path
def conf_dir() -> Path:
    return Path(__file__).parent.parent/"conf"
