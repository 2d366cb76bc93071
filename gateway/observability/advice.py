"""What to do about each warning of the gateway. Pure.

Many warnings say it themselves, for people who know the gateway. Here are words for people who see them on a page.
"""

_BRING_BACK = "Bring the store back: look at its address, its credentials and the network."
_AT_RISK = f"{_BRING_BACK} Writes go on meanwhile, and would be lost with this machine."
_DELETED = "Look for what deletes objects in the store, such as a lifecycle rule, and bring these back."
_ADVICE = (
    ("no fencing", "Use a store whose conditional writes hold, and never let two gateways use this one."),
    ("not fenced yet", _BRING_BACK),
    ("the store does not tell whether", _BRING_BACK),
    ("MiB left", "Free some space on the disk of the data directory, or enlarge it."),
    ("has no inodes left", "Remove files from the file system of the data directory, or make a new one with more."),
    ("open files", "Raise the limit of open files (LimitNOFILE of the unit, or ulimit -n), and restart."),
    ("index files cannot be written", "Let the user of the gateway write to the data directory and all in it."),
    ("is not in the store yet", _AT_RISK),
    ("the journal cannot be written", _AT_RISK),
    (
        "cannot be written: ",
        "Make the data directory writable: its mount, its owner, its quota, the space on its disk.",
    ),
    ("has no shared memory", "Put the data directory on a local disk: on a network file system there is no journal."),
    ("if this machine is lost or killed", "Set GATEWAY_JOURNAL_INTERVAL_S=1, or schedule snapshots."),
    ("is missing in the store", _DELETED),
    ("need packs that are missing", _DELETED),
    ("snapshot(s) cannot be read", "Put the manifests back, or delete these snapshots."),
    ("collection(s) cannot be read", "Repair the collection, restore a snapshot, or delete the collection."),
    ("lost their vector", "Upsert these records again."),
    ("is torn on disk", "Nothing at once: it is repaired at Chroma's next start. To do it now, repair the collection."),
    ("garbage collection fails", "Allow the gateway to delete objects, or set GATEWAY_STORE_NEVER_DELETE=true."),
)
PHRASES = tuple(phrase for phrase, _ in _ADVICE)
UNKNOWN = "See docs/troubleshooting.md for what to do."


def advice_on(warning: str) -> str:
    """What to do about a warning of `/admin/status`, in one or two sentences."""
    return next((advice for phrase, advice in _ADVICE if phrase in warning), UNKNOWN)
