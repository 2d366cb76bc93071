{{- define "chroma-gateway.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "chroma-gateway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "chroma-gateway.labels" -}}
{{ include "chroma-gateway.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "chroma-gateway.secret" -}}
{{- if .Values.secret.name -}}
{{- .Values.secret.name -}}
{{- else if hasKey .Values.secret.data "GATEWAY_ADMIN_TOKEN" -}}
{{- include "chroma-gateway.name" . -}}
{{- else -}}
{{- fail "set secret.name to a Secret that has GATEWAY_ADMIN_TOKEN, or give that in secret.data" -}}
{{- end -}}
{{- end -}}
