// Package deploytest checks the files of deploy/kubernetes and deploy/helm against the types of
// Kubernetes, and against the program: probes, configuration, and the time that a stop takes. It
// is a module of its own, so that the dependencies of Helm and Kustomize stay out of go.mod.
package deploytest
