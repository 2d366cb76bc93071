"""What to do about each warning of the gateway. Pure.

Most warnings say it themselves, after a semicolon or a colon. Here are words for all of them, for people who see them
on a page and not in the documentation.
"""

_ADVICE = (
    ("no fencing", "Use a store whose conditional writes hold, and never let two gateways use this one."),
    ("not fenced yet", "Bring the store back: look at its address, its credentials and the network."),
    ("the store does not tell whether", "Bring the store back: look at its address, its credentials and the network."),
    ("soon: the data directory has", "Free some space on the disk of the data directory, or enlarge it."),
    ("soon: ", "Raise the limit of open files (LimitNOFILE of the unit, or ulimit -n), and restart."),
    (
        "what was written in the last",
        "Bring the store back. Writes go on meanwhile, and would be lost with this machine.",
    ),
    (
        "the journal cannot be written",
        "Bring the store back. Writes go on meanwhile, and would be lost with this machine.",
    ),
    (
        "the data directory's file system",
        "Put the data directory on a local disk: a network file system has no journal.",
    ),
    ("if this machine is lost or killed", "Set GATEWAY_JOURNAL_INTERVAL_S=1, or schedule snapshots."),
    ("snapshot ", "Look for what deletes objects in the store, such as a lifecycle rule, and bring them back."),
    ("garbage collection fails", "Allow the gateway to delete objects, or set GATEWAY_STORE_NEVER_DELETE=true."),
    ("the index ", "Nothing at once: it is repaired at Chroma's next start. To do it now, repair the collection."),
)
_CONTAINED = (
    ("lost their vector", "Upsert these records again."),
    ("collection(s) cannot be read", "Repair the collection, restore a snapshot, or delete the collection."),
    ("snapshot(s) cannot be read", "Put the manifests back, or delete these snapshots."),
    ("snapshot(s) need packs", "Bring the objects back, and look for what deletes them, such as a lifecycle rule."),
)
_ANY = "See docs/troubleshooting.md for what to do."


def advice_on(warning: str) -> str:
    """What to do about a warning of `/admin/status`, in one or two sentences."""
    for beginning, advice in _ADVICE:
        if warning.startswith(beginning):
            return advice
    return next((advice for part, advice in _CONTAINED if part in warning), _ANY)
