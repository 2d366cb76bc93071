"""The admin application, with the objects that only it needs. Its import takes longer than Chroma's start."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from gateway.api.app import admin_application, bounded
from gateway.api.audit import audited
from gateway.api.documents import Documents
from gateway.api.key_holder import KeyHolder
from gateway.api.request_ids import numbered
from gateway.auth.addresses import networks
from gateway.auth.scope import Role
from gateway.chroma.process import base_url
from gateway.documents.store import DocumentStore
from gateway.documents.train import Trainer
from gateway.observability.check.gather import ProductionCheck
from gateway.server.container import Gateway


def routes_of(gateway: Gateway) -> FastAPI:
    """Every route but those of the data path."""
    settings, vectorstore = gateway.settings, gateway.vectorstore
    check = ProductionCheck(
        settings, gateway.keyring, vectorstore, gateway.data_path, gateway.collector, gateway.health.started_s
    )
    store = DocumentStore(gateway.storage, settings.user_id, settings.max_document_bytes)
    trainer = Trainer(
        base_url(settings.chroma_port),
        vectorstore.gate.admitted,
        embedding=gateway.embedding,
        module=settings.embedding_module or None,
        restores=lambda: vectorstore.gate.refusals,
    )
    documents = Documents(store, trainer, gateway.jobs)
    provided = (vectorstore, gateway.jobs, gateway.health, check, gateway.collector, documents, gateway.feed)
    return admin_application(settings, gateway.keyring, *provided)


def admin_of(gateway: Gateway) -> ASGIApp:
    """The routes as they are served: behind the bounds of a request, with the audit and the number of each request."""
    settings = gateway.settings
    admin = bounded(routes_of(gateway), KeyHolder(gateway.keyring, Role.ADMIN), settings.max_document_bytes)
    return numbered(audited(admin, gateway.audit, networks(settings.trusted_proxies)))
