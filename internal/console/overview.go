package console

import (
	"net/http"

	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/page"
)

// overview is the page of all syncs.
func (c *Console) overview(w http.ResponseWriter, r *http.Request, _ visitor) error {
	all, err := inspect.ReadOverview(r.Context(), c.Read)
	if err != nil {
		return err
	}
	c.write(w, r, http.StatusOK, page.View{Page: "overview", Title: "Overview", Here: "/", Data: all})
	return nil
}
