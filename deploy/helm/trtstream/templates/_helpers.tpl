{{/* Every name begins with the release's. */}}
{{- define "trtstream.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of pods by which others find them. Call with (list $ COMPONENT). */}}
{{- define "trtstream.selector" -}}
app.kubernetes.io/name: trtstream
app.kubernetes.io/instance: {{ include "trtstream.name" (first .) }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "trtstream.labels" -}}
{{ include "trtstream.selector" . }}
app.kubernetes.io/version: {{ (first .).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (first .).Release.Service }}
helm.sh/chart: {{ (first .).Chart.Name }}-{{ (first .).Chart.Version }}
{{- end }}

{{/* Name and labels of an object. Call with (list $ COMPONENT SUFFIX-OF-THE-NAME). */}}
{{- define "trtstream.metadata" -}}
name: {{ include "trtstream.name" (first .) }}{{ last . }}
namespace: {{ (first .).Release.Namespace }}
labels:
  {{- include "trtstream.labels" (list (first .) (index . 1)) | nindent 2 }}
{{- end }}

{{- define "trtstream.image" -}}
image: {{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* What all pods have in common: the rules of the restricted Pod Security Standard, and no token. */}}
{{- define "trtstream.pod" -}}
automountServiceAccountToken: false
# Their variables would begin with TRTSTREAM_ in a release of that name.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "trtstream.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* HOME is for caches, such as that of compiled kernels. */}}
{{- define "trtstream.env" -}}
- name: HOME
  value: /tmp
{{- with .Values.sessions.storeSecret }}
- name: TRTSTREAM_SESSION_STORE
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: url
{{- end }}
{{- end }}

{{/* Other nodes and zones are preferred, not required. Call with (list $ COMPONENT). */}}
{{- define "trtstream.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "trtstream.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{/* Before SIGTERM, so that the pod is out of all endpoints when turns are refused. Then the drain, and 30 s to exit. */}}
{{- define "trtstream.lifecycle" -}}
lifecycle:
  preStop:
    sleep:
      seconds: {{ .Values.servers.drain.delay }}
{{- end }}

{{- define "trtstream.grace" -}}
terminationGracePeriodSeconds: {{ add .Values.servers.drain.delay .Values.servers.drain.timeout 30 }}
{{- end }}
