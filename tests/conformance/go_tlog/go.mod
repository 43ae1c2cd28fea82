module signet.invalid/go_tlog

go 1.25.0

require (
	filippo.io/mldsa v1.0.0
	golang.org/x/mod v0.40.0
)
