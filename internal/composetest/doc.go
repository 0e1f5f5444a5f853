// Package composetest runs deploy/compose/compose.yaml as a whole: real containers, on a Docker
// engine of their own. It is a module of its own, so that the dependencies of Docker Compose
// stay out of go.mod. make test-compose runs it.
package composetest
