# Third-party modules in lockstep

Made by `make licences`. Their texts are at the addresses, and with each module's source.

| module | version | licence |
|---|---|---|
{{ range . }}{{ if ne .Name "github.com/hms-mkt/lockstep" }}| {{ .Name }} | {{ .Version }} | [{{ .LicenseName }}]({{ .LicenseURL }}) |
{{ end }}{{ end }}
