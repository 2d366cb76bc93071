"""From other places to the gateway.

- `milvus`  a collection of Milvus Lite, vectors and all
- `pdfs`    a folder of PDFs, or of other documents, which the gateway reads and embeds
- `report`  what was compared afterwards
"""
