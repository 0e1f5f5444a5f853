// Package hl7 sends appointments to the scheduling system of a clinic: HL7 version 2 messages
// SIU (chapter 10 of the standard) over MLLP, the framing of most HL7 interfaces, plain or
// with TLS.
//
// The configuration has a template of segments, whose placeholders are filled with mapped
// fields. The adapter writes the segment MSH, and escapes all values, so that no value can end
// a field, a segment or the message. A repeated message has the same bytes and the same
// control id (MSH-10), by which the receiver knows it.
//
// The protocol has no way to ask what a receiver holds, so a lost answer is not read back: the
// same message is sent again.
package hl7
