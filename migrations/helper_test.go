package migrations_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// SQLSTATEs of the refusals of tables and functions.
const (
	denied       = "42501" // insufficient_privilege
	checkFailed  = "23514" // check_violation
	duplicate    = "23505" // unique_violation
	notNull      = "23502" // not_null_violation
	alwaysDrawn  = "428C9" // generated_always
	wrongState   = "55000" // object_not_in_prerequisite_state
	noData       = "P0002" // no_data_found
	noReason     = "22004" // null_value_not_allowed
	tooMany      = "54000" // program_limit_exceeded
	badParameter = "22023" // invalid_parameter_value
	serialize    = "40001" // serialization_failure
)
