package console

import "testing"

func TestTheOverviewSaysInWordsWhyNothingIsSent(t *testing.T) {
	w := newWorld(t)
	w.get("/").wants(200, "Court", "Nothing stops it.")
	w.Do(`SELECT outbox.pause('Court', 'the <script> moves')`)
	w.get("/").wants(200, "was paused by", "the &lt;script&gt; moves", "It continues when a person resumes it.").lacks("<script>", "Nothing stops it.")
}
