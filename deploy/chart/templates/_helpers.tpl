{{/* Labels of every object; takes the root and the name of a part. */}}
{{- define "loam.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: loam
{{ include "loam.selector" . }}
{{- end }}

{{/* Labels by which the pods of a part are found. They never change. */}}
{{- define "loam.selector" -}}
app: {{ .name }}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Reference of an image; takes the root and the image's name. */}}
{{- define "loam.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* What all pods have. Nothing of the mesh is in the mesh. */}}
{{- define "loam.podLabels" -}}
istio.io/dataplane-mode: none
sidecar.istio.io/inject: "false"
{{- end }}

{{/* The hardest security context that a program needs which is given everything. */}}
{{- define "loam.restricted" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Security context of what works on the node: agent and cleanup. */}}
{{- define "loam.agentSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
capabilities:
  drop: [ALL]
  # BPF and NET_ADMIN load programs; SYS_ADMIN enters the pods' network namespaces, which SYS_PTRACE lets it see; NET_RAW
  # marks sockets; DAC_OVERRIDE and CHOWN are for files and sockets that belong to others.
  add: [BPF, CHOWN, DAC_OVERRIDE, NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_PTRACE]
seccompProfile:
  type: RuntimeDefault
# The default profile forbids to look at the namespaces of other processes.
appArmorProfile:
  type: Unconfined
{{- with .Values.node.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A token for the API server, for one container instead of all of the pod. */}}
{{- define "loam.apiAccess" -}}
- name: kube-api-access
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end }}

{{/* Volumes of the node on which agent and cleanup work. */}}
{{- define "loam.nodeVolumes" -}}
- name: bpffs
  hostPath:
    path: /sys/fs/bpf
    type: Directory
- name: cgroup
  hostPath:
    path: {{ .Values.node.cgroup }}
    type: Directory
{{- if .Values.node.cni.enabled }}
- name: cni-bin
  hostPath:
    path: {{ .Values.node.cni.binDir }}
    type: DirectoryOrCreate
- name: cni-conf
  hostPath:
    path: {{ .Values.node.cni.confDir }}
    type: DirectoryOrCreate
{{- end }}
{{- end }}

{{- define "loam.nodeMounts" -}}
- name: bpffs
  mountPath: /sys/fs/bpf
- name: cgroup
  mountPath: /host/cgroup
  readOnly: true
{{- if .Values.node.cni.enabled }}
- name: cni-bin
  mountPath: /host/cni/bin
- name: cni-conf
  mountPath: /host/cni/net.d
{{- end }}
{{- end }}

{{- define "loam.nodeEnv" -}}
- name: LOAM_LOG
  value: {{ .Values.log.level | quote }}
- name: LOAM_LOG_FORMAT
  value: {{ .Values.log.format }}
- name: LOAM_CGROUP
  value: /host/cgroup
{{- if .Values.node.cni.enabled }}
- name: LOAM_CNI_BIN_DIR
  value: /host/cni/bin
- name: LOAM_CNI_CONF_DIR
  value: /host/cni/net.d
{{- end }}
{{- end }}

{{/* Whether to render a definition: not one that somebody else installed. Takes the root and the definition's name. */}}
{{- define "loam.ownsCRD" -}}
{{- if .root.Values.crds.install }}
{{- $found := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name }}
{{- $owner := dig "metadata" "annotations" "meta.helm.sh/release-name" "" ($found | default dict) }}
{{- if or (not $found) (eq $owner .root.Release.Name) }}true{{ end }}
{{- end }}
{{- end }}

{{- define "loam.crdMetadata" -}}
name: {{ .name }}
annotations:
  helm.sh/resource-policy: keep
labels:
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/part-of: loam
{{- end }}
