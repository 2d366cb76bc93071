"""Documents of a user's avatars in the store, and how they become a Chroma collection.

Vocabulary: a *folder* is one of those that the layout names; a *document* is an object in one, called by
its *name*, which may have `/` in it. A *flag* says whether a document is used for training; the flags of a
folder are one JSON object. A document's *text* is split into *chunks*, each a record of the collection.

    users/{user_id}/
    ├── vectorstore/                     the gateway's snapshots; never reached from here
    ├── avatars/{avatar_id}/
    │   ├── vectorstore_data/            documents that become chunks
    │   ├── vectorstore_metadata/        metadata.json: the flags of vectorstore_data
    │   ├── adapters/                    adapter files
    │   ├── adapters/training_data/      training data for fine-tuning
    │   ├── adapters/metadata/           metadata.json: the flags of adapters/training_data
    │   ├── media/audio/
    │   └── media/original/{video,text,audio,images}/
    └── image/

A request (`gateway.api.documents`):

1. `layout`  path → folder and name → key of the store, or a refusal
   `digest`  the digests that the client declares for an upload
2. `store`   reads, writes, lists and deletes the object; `flags` has the format of its flag

Training:

1. `train`       lists the documents flagged true, and the records that the collection has (`collection`)
2. `plan`        what is new, changed, unchanged, gone
3. `worker_pool` sends each new or changed document to a process of its own, which may be killed (`worker`):
   `readers`     bytes → text
   `split`       text → chunks
   `embedding`   chunks → embeddings
4. `collection`  upserts the chunks, then deletes what is left over and what is gone
"""
