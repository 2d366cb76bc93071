"""Who may do what.

A *token* is what a client sends; it is never kept. A *key* is what is known of a token: a name, its SHA-256,
a *role* (reader, writer, admin), a *scope* (tenants, databases, collection names), perhaps an end and limits.
The *keyring* holds all keys. A *visitor* is whoever sends a request: the holder of a key, or somebody anonymous.

1. `tokens`   finds the one token in a request's headers, makes new ones, hashes      pure but for randomness
2. `keyring`  token → key, in constant time; read anew when the file changes
3. `routes`   what each of Chroma's routes addresses                                  pure
4. `access`   may this role, in this scope, do that? and if not, what to answer       pure
5. `quota`    requests a second and in flight, of a key or an address                 pure
6. `audit`    one line for whatever an operator may have to explain later

The data path asks all this once for each distinct head (`gateway.proxy.policy`), never once for each request.
What a scoped key must not see answers like what does not exist, whether it exists or not.
"""
