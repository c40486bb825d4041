// Package conformance_test is the official Gateway API conformance suite as a program. `cargo xtask conformance` runs it.
package conformance_test

import (
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
)

// TestConformance runs the suite unchanged, with the suite's own flags.
func TestConformance(t *testing.T) {
	conformance.RunConformanceWithOptions(t, conformance.DefaultOptions(t))
}

// TestList prints the tests of the gateway profiles and needs no cluster. A test belongs to each profile that has all
// features which the test exercises.
func TestList(*testing.T) {
	profiles := []suite.ConformanceProfile{
		suite.GatewayHTTPConformanceProfile,
		suite.GatewayGRPCConformanceProfile,
		suite.GatewayTLSConformanceProfile,
		suite.GatewayTCPConformanceProfile,
		suite.GatewayUDPConformanceProfile,
	}
	for _, test := range tests.ConformanceTests {
		var of, features []string
		for _, feature := range test.Features {
			features = append(features, string(feature))
		}
		for _, profile := range profiles {
			if profile.CoreFeatures.Union(profile.ExtendedFeatures).HasAll(test.Features...) {
				of = append(of, string(profile.Name))
			}
		}
		fmt.Printf("TEST\t%s\t%s\t%s\n", test.ShortName, strings.Join(of, ","), strings.Join(features, ","))
	}
}
