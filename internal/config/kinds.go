package config

import (
	"github.com/hms-mkt/lockstep/adapters/rest"
	"github.com/hms-mkt/lockstep/adapters/soap"
	"github.com/hms-mkt/lockstep/adapters/webhook"
)

// kinds are the adapters that a configuration can name: one line each.
func kinds() map[string]adapterKind {
	return map[string]adapterKind{
		"rest":    kindOf(rest.New),
		"soap":    kindOf(soap.New),
		"webhook": kindOf(webhook.New),
	}
}
