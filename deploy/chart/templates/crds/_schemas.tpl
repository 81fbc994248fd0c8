{{/* Field types of the kinds that the controller reads. Fields that are not here are kept as they are written: of a policy
     also what nobody knows counts, and other programs read the same objects. */}}

{{- define "loam.strings" -}}
type: array
items:
  type: string
{{- end }}

{{- define "loam.labelMap" -}}
type: object
additionalProperties:
  type: string
{{- end }}

{{- define "loam.mtls" -}}
type: object
x-kubernetes-preserve-unknown-fields: true
properties:
  mode:
    type: string
    enum: [UNSET, DISABLE, PERMISSIVE, STRICT]
{{- end }}

{{- define "loam.authorizationpolicy" -}}
type: object
x-kubernetes-preserve-unknown-fields: true
properties:
  action:
    type: string
    enum: [ALLOW, DENY, AUDIT, CUSTOM]
  selector:
    type: object
    x-kubernetes-preserve-unknown-fields: true
    properties:
      matchLabels:
        {{- include "loam.labelMap" . | nindent 8 }}
  targetRef:
    type: object
    x-kubernetes-preserve-unknown-fields: true
    properties:
      group: {type: string}
      kind: {type: string}
      name: {type: string}
      namespace: {type: string}
  targetRefs:
    type: array
    items:
      type: object
      x-kubernetes-preserve-unknown-fields: true
      properties:
        group: {type: string}
        kind: {type: string}
        name: {type: string}
        namespace: {type: string}
  rules:
    type: array
    items:
      type: object
      x-kubernetes-preserve-unknown-fields: true
      properties:
        from:
          type: array
          items:
            type: object
            x-kubernetes-preserve-unknown-fields: true
            properties:
              source:
                type: object
                x-kubernetes-preserve-unknown-fields: true
                properties:
                  {{- range tuple "principals" "requestPrincipals" "namespaces" "ipBlocks" "remoteIpBlocks" "serviceAccounts" }}
                  {{ . }}:
                    {{- include "loam.strings" $ | nindent 20 }}
                  {{ printf "not%s" (title .) }}:
                    {{- include "loam.strings" $ | nindent 20 }}
                  {{- end }}
        to:
          type: array
          items:
            type: object
            x-kubernetes-preserve-unknown-fields: true
            properties:
              operation:
                type: object
                x-kubernetes-preserve-unknown-fields: true
                properties:
                  {{- range tuple "hosts" "ports" "methods" "paths" }}
                  {{ . }}:
                    {{- include "loam.strings" $ | nindent 20 }}
                  {{ printf "not%s" (title .) }}:
                    {{- include "loam.strings" $ | nindent 20 }}
                  {{- end }}
        when:
          type: array
          items:
            type: object
            x-kubernetes-preserve-unknown-fields: true
            properties:
              key: {type: string}
              values:
                {{- include "loam.strings" . | nindent 16 }}
              notValues:
                {{- include "loam.strings" . | nindent 16 }}
{{- end }}

{{- define "loam.peerauthentication" -}}
type: object
x-kubernetes-preserve-unknown-fields: true
properties:
  selector:
    type: object
    x-kubernetes-preserve-unknown-fields: true
    properties:
      matchLabels:
        {{- include "loam.labelMap" . | nindent 8 }}
  mtls:
    {{- include "loam.mtls" . | nindent 4 }}
  portLevelMtls:
    type: object
    additionalProperties:
      {{- include "loam.mtls" . | nindent 6 }}
{{- end }}

{{- define "loam.workloadentry" -}}
type: object
x-kubernetes-preserve-unknown-fields: true
properties:
  {{- range tuple "address" "network" "locality" "serviceAccount" }}
  {{ . }}: {type: string}
  {{- end }}
  ports:
    type: object
    additionalProperties: {type: integer, format: int64, minimum: 0, maximum: 65535}
  labels:
    {{- include "loam.labelMap" . | nindent 4 }}
  weight: {type: integer, format: int64, minimum: 0, maximum: 4294967295}
{{- end }}

{{- define "loam.serviceentry" -}}
type: object
x-kubernetes-preserve-unknown-fields: true
required: [hosts]
properties:
  {{- range tuple "hosts" "addresses" "exportTo" "subjectAltNames" }}
  {{ . }}:
    {{- include "loam.strings" $ | nindent 4 }}
  {{- end }}
  ports:
    type: array
    items:
      type: object
      x-kubernetes-preserve-unknown-fields: true
      required: [number, name]
      properties:
        number: {type: integer, format: int64, minimum: 0, maximum: 65535}
        targetPort: {type: integer, format: int64, minimum: 0, maximum: 65535}
        protocol: {type: string}
        name: {type: string}
  location:
    type: string
    enum: [MESH_EXTERNAL, MESH_INTERNAL]
  resolution:
    type: string
    enum: [NONE, STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS]
  endpoints:
    type: array
    items:
      {{- include "loam.workloadentry" . | nindent 6 }}
  workloadSelector:
    type: object
    x-kubernetes-preserve-unknown-fields: true
    properties:
      labels:
        {{- include "loam.labelMap" . | nindent 8 }}
{{- end }}

{{- define "loam.sidecar" -}}
type: object
x-kubernetes-preserve-unknown-fields: true
properties:
  workloadSelector:
    type: object
    x-kubernetes-preserve-unknown-fields: true
    properties:
      labels:
        {{- include "loam.labelMap" . | nindent 8 }}
  outboundTrafficPolicy:
    type: object
    x-kubernetes-preserve-unknown-fields: true
    properties:
      mode:
        type: string
        enum: [ALLOW_ANY, REGISTRY_ONLY]
{{- end }}
