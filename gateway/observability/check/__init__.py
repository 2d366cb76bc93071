"""The production check: what people who run Chroma are told to do, looked up on the live system.

A *rule* is a small pure function from the *facts* to an *answer*: pass, warn or fail, with what was seen and the way
out. A fact that could not be looked up makes its rules answer *unknown*, which is not a pass. A *finding* is the answer
of one rule. docs/production-checklist.md lists the rules.

1. `gather`            looks the facts up: settings, store, data directory, what requests showed
   `facts`             what a rule may look at
2. `answers`           what a rule answers, and the report
   `saving_rules`      journal, snapshots, store
   `access_rules`      keys, TLS, limits
   `collection_rules`  embedding functions, distances, indexes, metadata, filters
   `capacity_rules`    memory, disk, log, batches, versions, alerts
3. `rules`             the list of all rules

The cost is bounded: `gather.MAX_COLLECTIONS` collections are looked at, those with the most records.
"""
