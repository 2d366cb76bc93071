variable "project" {
  description = "The project's id."
  type        = string
}

variable "region" {
  description = "Of the service, the bucket and the secrets."
  type        = string
  default     = "europe-west1"
}

variable "service" {
  description = "The service's name, and the first part of every other name."
  type        = string
  default     = "chroma-gateway"
}

variable "bucket" {
  description = "A bucket to create for the snapshots. Names are unique in the world."
  type        = string
}

variable "image" {
  description = "The image, by digest or version."
  type        = string
}

variable "admin_token" {
  description = "GATEWAY_ADMIN_TOKEN. It goes to Secret Manager and not into the state."
  type        = string
  sensitive   = true
  ephemeral   = true

  validation {
    condition     = length(var.admin_token) >= 16
    error_message = "Take a token of 16 characters or more, for instance from: openssl rand -hex 24."
  }
}

variable "admin_token_version" {
  description = "Count this up when admin_token changes."
  type        = number
  default     = 1
}

variable "memory" {
  description = "The disk of an instance is memory: see \"Memory\" in docs/deploy/cloud-run.md."
  type        = string
  default     = "2Gi"
}

variable "cpu" {
  description = "Number of processors."
  type        = string
  default     = "1"
}

variable "snapshot_interval_s" {
  description = "GATEWAY_SNAPSHOT_INTERVAL_S. 0 turns schedules off."
  type        = number
  default     = 3600
}

variable "settings" {
  description = "Further settings: see docs/configuration.md."
  type        = map(string)
  default     = {}
}

variable "public" {
  description = "Whether Cloud Run lets requests of everybody through. The gateway itself wants a key in any case."
  type        = bool
  default     = true
}
