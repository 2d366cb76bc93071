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

A request:  path → folder and name (`layout`) → object (`files`) and flag (`flags`)        (`api`)
Training:   1. list the documents flagged true, and the records that the collection has    (`train`)
            2. plan: what is new, changed, unchanged, gone                                  (`plan`)
            3. each new or changed document: fetch → text → chunks, in a process of its own that may
               be killed (`text`, `split`, `worker`, `worker_pool`) → embeddings → upsert → delete what is left over
            4. delete what is gone
"""
