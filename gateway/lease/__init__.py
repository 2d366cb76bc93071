"""The lease: at most one gateway writes to a repository at a time.

Vocabulary:

- *lease*: the object `lease.json` in the store. It says which gateway may write.
- *holder*: the process that has the lease. Each process has a random name.
- *epoch*: the fencing number. It grows by one with every holder.
- *home*: the random name of a data directory in its place. A holder on our own home is an earlier process of this
  gateway. A copy of a directory has another home.
- *announced*: a snapshot whose manifest is about to be written. *Committed*: a snapshot that was published under the
  lease. *Aborted*: a snapshot that was announced and can never be committed.
- *pending delete*: packs whose deletion may be under way. No new snapshot may name them.
- *forced*: a takeover from a holder that did not hand over.

From start to end:

1. `probe` tests whether the store honours conditional writes. Without them there is no fencing.
2. `Lease.take` becomes the holder. It asks the present holder to leave, and takes over by force if that holder does
   not answer or does not finish in time.
3. `Lease.publishing` encloses the writing of each manifest. A gateway that lost the lease cannot commit a snapshot.
4. `Lease.mark_pending_delete` precedes every deletion of packs. A gateway that lost the lease deletes nothing that
   its successor needs.
5. The holder reads the lease every 2 s. When another gateway wants it, the holder refuses writes, takes a final
   snapshot and calls `Lease.release`.

Modules:

- `state`: the contents of `lease.json`, and the proof that a gateway that lost the lease changes nothing. Pure.
- `lease`: changes of the lease in the store, one compare-and-swap at a time.
- `probe`: a test of the store's conditional writes.
- `election`: the role of this gateway among those on the same store.
- `data_dir_state`: what a data directory remembers about its repository.
"""
