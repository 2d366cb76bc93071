output "url" {
  description = "Where clients connect, with TLS, port 443."
  value       = google_cloud_run_v2_service.gateway.uri
}

output "store" {
  description = "GATEWAY_STORE of this and of any other gateway on the same data."
  value       = "s3://${google_storage_bucket.store.name}"
}
