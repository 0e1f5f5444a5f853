// Package recipes has the files of this directory, each a sync for a real API.
package recipes

import "embed"

// Files are the recipes, NAME.yaml each.
//
//go:embed *.yaml
var Files embed.FS
