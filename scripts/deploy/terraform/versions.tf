terraform {
  required_version = ">= 1.11" # write-only attributes

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.23, < 8"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}
