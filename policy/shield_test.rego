package signet.shield_test

import rego.v1

import data.signet.shield

route := {
	"binding": "tls-exporter",
	"subjects": [],
	"algorithms": ["ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"],
	"mode": "and",
	"evidence": "none",
	"fallback_classic": false,
}

hybrid_route := object.union(route, {"algorithms": ["ed25519+ml-dsa-65"]})

fallback_route := object.union(hybrid_route, {"fallback_classic": true})

request := {
	"route": "protected",
	"subject": "alice",
	"binding": "tls-exporter",
	"algorithms": ["ed25519"],
	"fallback": false,
	"evidence": false,
	"phase": "closed",
}

verdict(changes, route_changes) := answer if {
	answer := shield.verdict with input as object.union(request, changes)
		with data.signet.routes as {"protected": object.union(route, route_changes)}
}

allowed(changes, route_changes) if verdict(changes, route_changes) == {
	"allow": true,
	"rule": "shield.allow",
	"floor_share": 0.05,
	"fallback_classic": false,
}

refused(changes, route_changes, name) if {
	answer := verdict(changes, route_changes)
	answer.allow == false
	answer.rule == name
}

test_what_satisfies_every_rule_passes if allowed({}, {})

test_a_route_that_the_table_does_not_know_is_refused if refused({"route": "other"}, {}, "route.unknown")

test_an_unbound_proof_is_refused_where_the_route_is_bound if refused({"binding": "none"}, {}, "binding.required")

test_an_unbound_proof_passes_where_the_route_is_unbound if allowed({"binding": "none"}, {"binding": "none"})

test_a_subject_that_is_not_listed_is_refused if refused({}, {"subjects": ["bob"]}, "subject.not_admitted")

test_a_subject_that_is_listed_passes if allowed({}, {"subjects": ["bob", "alice"]})

test_no_algorithm_is_refused if refused({"algorithms": []}, {}, "algorithm.missing")

test_an_algorithm_that_is_not_listed_is_refused if {
	refused({"algorithms": ["ecdsa-p256-sha256"]}, {}, "algorithm.not_allowed")
}

test_one_algorithm_of_two_that_is_not_listed_is_refused if {
	refused({"algorithms": ["ed25519", "ml-dsa-87"]}, {}, "algorithm.not_allowed")
}

test_a_hybrid_passes if allowed({"algorithms": ["ed25519", "ml-dsa-65"]}, {})

test_a_classical_proof_is_refused_where_only_post_quantum_counts if {
	refused({}, {"mode": "pq_only"}, "algorithm.post_quantum_missing")
}

test_a_post_quantum_proof_passes_where_only_post_quantum_counts if {
	allowed({"algorithms": ["ml-dsa-65"]}, {"mode": "pq_only"})
}

test_a_half_of_a_hybrid_is_not_what_the_route_lists if {
	refused({}, hybrid_route, "algorithm.not_allowed")
	refused({"algorithms": ["ml-dsa-65"]}, hybrid_route, "algorithm.not_allowed")
	refused({"algorithms": ["ml-dsa-65", "ed25519"]}, hybrid_route, "algorithm.not_allowed")
}

test_the_classical_half_alone_is_refused_where_no_fallback_is_permitted if {
	refused({"fallback": true, "phase": "open"}, hybrid_route, "fallback.not_permitted")
}

test_the_classical_half_alone_passes_where_fallback_is_permitted if {
	every phase in {"open", "half_open"} {
		answer := verdict({"fallback": true, "phase": phase}, fallback_route)
		answer.allow == true
		answer.fallback_classic == true
	}
}

test_the_classical_half_alone_is_refused_while_all_is_well if {
	refused({"fallback": true, "phase": "closed"}, fallback_route, "fallback.not_needed")
	refused({"fallback": false, "phase": "open"}, fallback_route, "algorithm.not_allowed")
}

test_the_other_half_or_another_algorithm_is_no_fallback if {
	every name in {"ml-dsa-65", "ecdsa-p256-sha256"} {
		refused({"fallback": true, "phase": "open", "algorithms": [name]}, fallback_route, "algorithm.not_allowed")
	}
}

test_missing_evidence_is_refused_where_it_is_required if {
	refused({}, {"evidence": "required"}, "evidence.missing")
}

test_evidence_passes_where_it_is_required if allowed({"evidence": true}, {"evidence": "required"})

test_of_several_violations_the_first_by_name_is_told if {
	refused({"binding": "none", "algorithms": []}, {"subjects": ["bob"]}, "algorithm.missing")
}

test_a_request_that_lacks_a_member_is_refused_for_it if {
	every name in {"subject", "binding", "algorithms", "fallback", "evidence", "phase"} {
		answer := shield.violations with input as object.remove(request, [name])
			with data.signet.routes as {"protected": route}
		"input.malformed" in answer
	}
}

test_a_member_of_another_type_is_refused_for_it if {
	every name in {"subject", "binding", "algorithms", "fallback", "evidence", "phase"} {
		answer := shield.violations with input as object.union(request, {name: 7})
			with data.signet.routes as {"protected": route}
		"input.malformed" in answer
	}
}

test_a_route_that_lacks_a_member_admits_nobody if {
	every name in object.keys(route) - {"fallback_classic"} {
		answer := shield.violations with input as request
			with data.signet.routes as {"protected": object.remove(route, [name])}
		"route.unknown" in answer
	}
}

test_a_route_with_a_member_of_another_type_admits_nobody if {
	every name in object.keys(route) - {"fallback_classic"} {
		answer := shield.violations with input as request
			with data.signet.routes as {"protected": object.union(route, {name: 7})}
		"route.unknown" in answer
	}
}

test_a_request_without_a_route_is_refused if {
	answer := shield.violations with input as object.remove(request, ["route"])
		with data.signet.routes as {"protected": route}
	"route.unknown" in answer
}

test_without_a_route_table_nothing_passes if {
	answer := shield.verdict with input as request with data.signet.routes as {}
	answer.allow == false
}

test_an_empty_input_is_refused if {
	answer := shield.verdict with input as {} with data.signet.routes as {"protected": route}
	answer.allow == false
}
