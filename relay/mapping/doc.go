// Package mapping turns an event into what a receiver is sent: a pure function of
// the event, without a clock, randomness or anything of the machine.
package mapping
