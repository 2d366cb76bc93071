"""Who may do what.

A *token* is what a client sends; the gateway stores its hash only. A *key* is what the gateway knows about a token: a
name, its SHA-256, a *role* (reader, writer, admin), a *scope* (tenants, databases, collection names), and perhaps an
expiry and limits. The *keyring* holds all keys. A *principal* is the sender of a request: the holder of a key, or an
anonymous client.

1. `tokens`   finds the one token in a request's headers; makes tokens and hashes    pure but for randomness
   `origins`  did a page of the gateway itself send a request?                       pure
   `admin_token`  the token for `/admin/*`, made once where none is set
2. `keyring`  token → key, in constant time; reloads the keys file when it changes
   `sessions` which key a browser signed in with, and until when
   `keys`     what a keys file may say                                               pure
   `scope`    roles, and patterns of names                                           pure
3. `access`   may this role, in this scope, do that? and if not, what is the response? pure
   `ack`      when is a write answered?                                              pure
4. `quota`    requests per second and in flight, of a key or an address              pure
   `addresses`  which address a request comes from                                   pure
5. `audit`    one line for each request that destroys or renames something

`gateway.chroma.routes` says what each of Chroma's routes addresses. The data path decides once for each distinct head
(`gateway.proxy.policy`), not once for each request. What is out of a key's scope gets the same response as what does
not exist, whether it exists or not.
"""
