package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestLog(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"by default", nil, "oci-mainpid: web.service: warning: w\noci-mainpid: i\n"},
		{"verbose", []string{"--verbose"}, "oci-mainpid: web.service: warning: w\noci-mainpid: i\noci-mainpid: d\n"},
		{"debug", []string{"--log-level=debug"}, "oci-mainpid: web.service: warning: w\noci-mainpid: i\noci-mainpid: d\n"},
		{"warnings", []string{"--log-level=warning"}, "oci-mainpid: web.service: warning: w\n"},
		{"errors", []string{"--log-level=error"}, ""},
	} {
		var b bytes.Buffer
		log := newLog(&b)
		root := command(log)
		if err := root.ParseFlags(test.args); err != nil {
			t.Fatal(err)
		}
		about(log, "web.service").Warn("w")
		log.Info("i")
		log.Debug("d")
		if b.String() != test.want {
			t.Errorf("%s: %q", test.name, b.String())
		}
	}
	var b bytes.Buffer
	log := newLog(&b)
	if err := command(log).ParseFlags([]string{"--log-format=json"}); err != nil {
		t.Fatal(err)
	}
	about(log, "web.service").Warn("two\nlines \x1b[31m")
	var line map[string]string
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line["unit"] != "web.service" || line["level"] != "warning" || line["msg"] != "two\nlines \x1b[31m" || strings.Count(b.String(), "\n") != 1 {
		t.Errorf("JSON: %v, %q", err, b.String())
	}
	for _, args := range [][]string{{"--log-level=loud"}, {"--log-format=xml"}} {
		if _, err := execute(append(args, "check")...); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}
