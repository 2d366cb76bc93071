# A gateway on Cloud Run, and the bucket of its snapshots. docs/deploy/cloud-run.md explains the choices.

locals {
  settings = merge(
    {
      GATEWAY_STORE               = "s3://${google_storage_bucket.store.name}"
      GATEWAY_SNAPSHOT_INTERVAL_S = tostring(var.snapshot_interval_s)
      GATEWAY_LOG_FORMAT          = "json"
      GOOGLE_CLOUD_PROJECT        = var.project
      AWS_ENDPOINT_URL_S3         = "https://storage.googleapis.com"
      AWS_REGION                  = "auto"
    },
    var.settings,
  )
  secrets = {
    GATEWAY_ADMIN_TOKEN   = { secret = google_secret_manager_secret.all["admin-token"].secret_id, version = google_secret_manager_secret_version.admin_token.version }
    AWS_ACCESS_KEY_ID     = { secret = google_secret_manager_secret.all["store-key-id"].secret_id, version = google_secret_manager_secret_version.store_key_id.version }
    AWS_SECRET_ACCESS_KEY = { secret = google_secret_manager_secret.all["store-key"].secret_id, version = google_secret_manager_secret_version.store_key.version }
  }
}

resource "google_service_account" "gateway" {
  account_id   = var.service
  display_name = "Chroma Gateway"
}

# ---------------------------------------------------------------------- the store

resource "google_storage_bucket" "store" {
  name                        = var.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  # Parts of uploads that were broken off.
  lifecycle_rule {
    condition {
      age = 7
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }
}

resource "google_storage_bucket_iam_member" "gateway" {
  bucket = google_storage_bucket.store.name
  role   = "roles/storage.objectUser"
  member = google_service_account.gateway.member
}

# The gateway speaks S3. Google Cloud Storage takes that with an HMAC key, whose secret is in Terraform's state.
resource "google_storage_hmac_key" "store" {
  service_account_email = google_service_account.gateway.email
}

# ---------------------------------------------------------------------- secrets

resource "google_secret_manager_secret" "all" {
  for_each  = toset(["admin-token", "store-key-id", "store-key"])
  secret_id = "${var.service}-${each.key}"

  replication {
    auto {}
  }
}

resource "google_secret_manager_secret_version" "admin_token" {
  secret                 = google_secret_manager_secret.all["admin-token"].id
  secret_data_wo         = var.admin_token
  secret_data_wo_version = var.admin_token_version
}

resource "google_secret_manager_secret_version" "store_key_id" {
  secret      = google_secret_manager_secret.all["store-key-id"].id
  secret_data = google_storage_hmac_key.store.access_id
}

resource "google_secret_manager_secret_version" "store_key" {
  secret      = google_secret_manager_secret.all["store-key"].id
  secret_data = google_storage_hmac_key.store.secret
}

resource "google_secret_manager_secret_iam_member" "gateway" {
  for_each  = google_secret_manager_secret.all
  secret_id = each.value.id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.gateway.member
}

# ---------------------------------------------------------------------- the service

resource "google_cloud_run_v2_service" "gateway" {
  name     = var.service
  location = var.region
  ingress  = "INGRESS_TRAFFIC_ALL"

  template {
    service_account                  = google_service_account.gateway.email
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    max_instance_request_concurrency = 250
    timeout                          = "900s"

    # A store has one writer. While a revision replaces another, both run, and the lease passes on.
    scaling {
      min_instance_count = 1
      max_instance_count = 1
    }

    containers {
      image = var.image

      ports {
        container_port = 8000
      }

      resources {
        limits = {
          cpu    = var.cpu
          memory = var.memory
        }
        # CPU also between requests: schedules, the lease and the final snapshot need it.
        cpu_idle          = false
        startup_cpu_boost = true
      }

      dynamic "env" {
        for_each = local.settings
        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "env" {
        for_each = local.secrets
        content {
          name = env.key
          value_source {
            secret_key_ref {
              secret  = env.value.secret
              version = env.value.version
            }
          }
        }
      }

      # Cloud Run waits at most 240 s for a start, and so for a restore.
      startup_probe {
        timeout_seconds   = 5
        period_seconds    = 5
        failure_threshold = 48
        http_get {
          path = "/readyz"
        }
      }

      liveness_probe {
        timeout_seconds   = 5
        period_seconds    = 10
        failure_threshold = 6
        http_get {
          path = "/healthz"
        }
      }
    }
  }

  depends_on = [
    google_secret_manager_secret_iam_member.gateway,
    google_storage_bucket_iam_member.gateway,
  ]
}

resource "google_cloud_run_v2_service_iam_member" "public" {
  count    = var.public ? 1 : 0
  name     = google_cloud_run_v2_service.gateway.name
  location = google_cloud_run_v2_service.gateway.location
  role     = "roles/run.invoker"
  member   = "allUsers"
}
