package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	store "hotslot.dev/protos/hotslot/store/v1"
	worker "hotslot.dev/protos/hotslot/worker/v1"
)

var (
	options   Options
	folder    = flag.String("push", "", "PEFT folder to push")
	imported  = flag.String("import", "", "folder of the store's machine to import")
	baseModel = flag.String("base-model", "", "name or digest of the adapters' base model, where their configs name none")
	minimum   = flag.Int64("min-revision", 0, "revision that another client wrote")
)

// go run . -push DIR -import DIR STORE WORKER NAME OTHER_NAME: each call once. Prints JSON lines.
func main() {
	flag.StringVar(&options.Tenant, "tenant", "", "tenant, where a token is for several")
	flag.StringVar(&options.Token, "token", os.Getenv("HOTSLOT_TOKEN"), "token of the caller")
	flag.StringVar(&options.CAFile, "ca", "", "file of the authority whose servers are trusted; plaintext without")
	flag.StringVar(&options.CertFile, "cert", "", "file of the caller's own certificate, where servers ask for one")
	flag.StringVar(&options.KeyFile, "key", "", "file of its key")
	flag.DurationVar(&options.Timeout, "timeout", time.Minute, "longest wait for an answer, retries included")
	flag.IntVar(&options.Attempts, "attempts", 4, "most attempts of a call that may be repeated")
	flag.Parse()
	if flag.NArg() != 4 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(context.Background(), flag.Arg(0), flag.Arg(1), flag.Arg(2), flag.Arg(3)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, storeEndpoint, workerEndpoint, name, other string) error {
	client, err := Dial(storeEndpoint, workerEndpoint, options)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := write(ctx, client, name, other); err != nil {
		return err
	}
	if err := generate(ctx, client, name, other); err != nil {
		return err
	}
	refuse(ctx, client, name)
	return leave(ctx, client, workerEndpoint)
}

func tell(what string, found map[string]interface{}) {
	found["what"] = what
	line, err := json.Marshal(found)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

// A folder of ours, and one of the store's machine.
func write(ctx context.Context, client *Client, name, other string) error {
	pushed, err := client.Push(ctx, *folder, name, *baseModel)
	if err != nil {
		return err
	}
	tell("push", map[string]interface{}{"digest": pushed.GetDigest(), "revision": client.Revision()})
	if *imported == "" {
		return nil
	}
	stages := []string{}
	request := &store.ImportAdapterRequest{
		Reference: other,
		BaseModel: *baseModel,
		Source:    &store.ImportAdapterRequest_Directory{Directory: &store.DirectorySource{Path: *imported}},
	}
	brought, err := client.Import(ctx, request, func(progress *store.ImportProgress) {
		stages = append(stages, progress.GetStage().String())
	})
	if err != nil {
		return err
	}
	tell("import", map[string]interface{}{
		"digest": brought.GetDigest(), "revision": client.Revision(), "progress": len(stages) > 0,
	})
	return nil
}

// A stream by one adapter, served by what was just pushed, and a mix of two by weights as a whole answer.
func generate(ctx context.Context, client *Client, name, other string) error {
	text, digest := "", ""
	err := client.Generate(ctx, &worker.GenerateRequest{
		Prompt:      &worker.GenerateRequest_Text{Text: "Tell me of the sea."},
		Adapters:    []*worker.AdapterSelection{{Reference: name}},
		Stop:        &worker.StopConditions{MaxTokens: 40},
		MinRevision: *minimum,
	}, func(message *worker.GenerateResponse) error {
		if started := message.GetStarted(); started != nil {
			digest = started.GetAdapters()[0].GetDigest()
		}
		text += message.GetChunk().GetText()
		return nil
	})
	if err != nil {
		return err
	}
	tell("stream", map[string]interface{}{"text": text, "digest": digest})

	half, quarter := 0.5, 0.25
	mix, err := client.Complete(ctx, &worker.GenerateRequest{
		Prompt: &worker.GenerateRequest_Chat{Chat: &worker.ChatPrompt{
			Messages: []*worker.ChatMessage{{Role: "user", Content: "Tell me of the sea."}},
		}},
		Adapters: []*worker.AdapterSelection{{Reference: name, Weight: &half}, {Reference: other, Weight: &quarter}},
		Stop:     &worker.StopConditions{MaxTokens: 40},
	})
	if err != nil {
		return err
	}
	choice := mix.GetChoices()[0]
	tell("mix", map[string]interface{}{"text": choice.GetText(), "reason": choice.GetFinished().GetReason().String()})
	return nil
}

// Errors with their reasons, the fields at fault, and a deadline.
func refuse(ctx context.Context, client *Client, name string) {
	hello := &worker.GenerateRequest_Text{Text: "hi"}
	for _, request := range []*worker.GenerateRequest{
		{Prompt: hello, Adapters: []*worker.AdapterSelection{{Reference: "no-such-adapter"}}},
		{Prompt: hello, Sampling: &worker.SamplingParams{Temperature: -1}},
		{Prompt: hello, Adapters: []*worker.AdapterSelection{{Reference: name}}, MinRevision: 1 << 40},
	} {
		_, err := client.Complete(ctx, request)
		var failed *Error
		if errors.As(err, &failed) {
			tell("refused", map[string]interface{}{
				"code": failed.Code.String(), "reason": failed.Reason, "fields": failed.Fields,
			})
		}
	}
	soon, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	endless := &worker.GenerateRequest{Prompt: &worker.GenerateRequest_Text{Text: "endless"}}
	_, err := client.Complete(soon, endless)
	var failed *Error
	if errors.As(err, &failed) {
		tell("deadline", map[string]interface{}{"code": failed.Code.String()})
	}
}

var errEnough = errors.New("enough")

// A request that is left in the middle, and a worker that is away.
func leave(ctx context.Context, client *Client, workerEndpoint string) error {
	endless := &worker.GenerateRequest{Prompt: &worker.GenerateRequest_Text{Text: "endless"}}
	err := client.Generate(ctx, endless, func(message *worker.GenerateResponse) error {
		if message.GetChunk() != nil {
			return errEnough
		}
		return nil
	})
	if err != errEnough {
		return fmt.Errorf("an endless answer ended with %v", err)
	}
	tell("left", map[string]interface{}{})

	away, err := Dial("127.0.0.1:1", "127.0.0.1:1", options)
	if err != nil {
		return err
	}
	defer away.Close()
	began := time.Now()
	_, err = away.Complete(ctx, endless)
	var failed *Error
	if errors.As(err, &failed) {
		tell("away", map[string]interface{}{"code": failed.Code.String(), "waited": time.Since(began) > firstPause})
	}
	return nil
}
