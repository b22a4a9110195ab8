// Package main is a client of hotslot for Go, made of the protos alone: pushes, imports, streams, whole answers,
// what it wrote, typed errors, deadlines, retries, certificates and tokens.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	store "hotslot.dev/protos/hotslot/store/v1"
	worker "hotslot.dev/protos/hotslot/worker/v1"
)

const (
	errorDomain  = "hotslot.dev"
	chunkBytes   = 256 << 10
	firstPause   = 100 * time.Millisecond
	longestPause = 2 * time.Second
)

// The files of a checkpoint that admission reads; those of a tokenizer beside them may be sent too.
var checkpointFiles = []string{"adapter_config.json", "adapter_model.safetensors"}

// Options of a client. Without a CAFile calls are in plaintext, and a Token is refused; CertFile and KeyFile are the
// caller's own, where servers ask for them.
type Options struct {
	Tenant   string
	Token    string
	CAFile   string
	CertFile string
	KeyFile  string
	Timeout  time.Duration
	Attempts int
}

func (o Options) security() ([]grpc.DialOption, error) {
	// It and Dial are there in every release of grpc-go 1; newer ones prefer insecure.NewCredentials, and NewClient.
	found := []grpc.DialOption{grpc.WithInsecure()}
	if o.CAFile != "" {
		authorities, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, err
		}
		trust := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		if !trust.RootCAs.AppendCertsFromPEM(authorities) {
			return nil, fmt.Errorf("%s has no certificate", o.CAFile)
		}
		if o.CertFile != "" {
			own, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
			if err != nil {
				return nil, err
			}
			trust.Certificates = []tls.Certificate{own}
		}
		found = []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(trust))}
	}
	if o.Token != "" {
		found = append(found, grpc.WithPerRPCCredentials(bearer(o.Token)))
	}
	return found, nil
}

// Error is a call that failed: its status, the stable reason, the fields at fault, and when to come again.
type Error struct {
	Code       codes.Code
	Reason     string
	Message    string
	Fields     []string
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s: %s", e.Code, e.Reason, e.Message)
}

// MayRetry tells that the same request may succeed soon, or on another worker.
func (e *Error) MayRetry() bool {
	return e.Code == codes.Unavailable || (e.Code == codes.ResourceExhausted && e.RetryAfter > 0)
}

func asError(err error) *Error {
	found, _ := status.FromError(err)
	failed := &Error{Code: found.Code(), Message: found.Message()}
	for _, detail := range found.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == errorDomain {
				failed.Reason = detail.GetReason()
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				failed.Fields = append(failed.Fields, violation.GetField())
			}
		case *errdetails.RetryInfo:
			failed.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return failed
}

type bearer string

func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// Client of a deployment: its store, and a worker, or all of them behind one address.
type Client struct {
	Adapters store.AdapterStoreServiceClient
	Blobs    store.BlobServiceClient
	Worker   worker.InferenceServiceClient
	options  Options
	revision int64
	open     []*grpc.ClientConn
}

// Dial makes a client; connections are made when they are needed.
func Dial(storeEndpoint, workerEndpoint string, options Options) (*Client, error) {
	security, err := options.security()
	if err != nil {
		return nil, err
	}
	client := &Client{options: options}
	for _, endpoint := range []string{storeEndpoint, workerEndpoint} {
		connection, err := grpc.Dial(endpoint, security...)
		if err != nil {
			client.Close()
			return nil, err
		}
		client.open = append(client.open, connection)
	}
	client.Adapters = store.NewAdapterStoreServiceClient(client.open[0])
	client.Blobs = store.NewBlobServiceClient(client.open[0])
	client.Worker = worker.NewInferenceServiceClient(client.open[1])
	return client, nil
}

// Close ends all connections.
func (c *Client) Close() {
	for _, connection := range c.open {
		connection.Close()
	}
}

// Revision of the tenant's catalog with everything that this client wrote: another client passes it on as MinRevision.
func (c *Client) Revision() int64 { return atomic.LoadInt64(&c.revision) }

func (c *Client) wrote(revision int64) {
	for {
		known := c.Revision()
		if revision <= known || atomic.CompareAndSwapInt64(&c.revision, known, revision) {
			return
		}
	}
}

// Push uploads what the store lacks of a PEFT folder, and has it admitted as `name[:tag]`.
func (c *Client) Push(ctx context.Context, folder, reference, baseModel string) (*store.Version, error) {
	request := &store.CreateVersionRequest{Reference: reference, BaseModel: baseModel}
	content := map[string][]byte{}
	for _, name := range checkpointFiles {
		data, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		digest := "sha256:" + hex.EncodeToString(sum[:])
		content[digest] = data
		request.Files = append(request.Files, &store.UploadedFile{Path: name, Digest: digest})
	}
	var version *store.Version
	err := c.retried(ctx, func(ctx context.Context) error {
		wanted := &store.FindMissingBlobsRequest{}
		for digest := range content {
			wanted.Digests = append(wanted.Digests, digest)
		}
		found, err := c.Blobs.FindMissingBlobs(ctx, wanted)
		if err != nil {
			return err
		}
		for _, digest := range found.GetMissingDigests() {
			if err := c.upload(ctx, digest, content[digest]); err != nil {
				return err
			}
		}
		created, err := c.Adapters.CreateVersion(ctx, request)
		if err != nil {
			return err
		}
		c.wrote(created.GetRevision())
		version = created.GetVersion()
		return nil
	})
	return version, err
}

// upload goes on where an earlier stream of the same bytes broke off.
func (c *Client) upload(ctx context.Context, digest string, data []byte) error {
	known, err := c.Blobs.GetWriteStatus(ctx, &store.GetWriteStatusRequest{Digest: digest})
	if err != nil {
		return err
	}
	stream, err := c.Blobs.WriteBlob(ctx)
	if err != nil {
		return err
	}
	for offset := int(known.GetCommittedSize()); ; offset += chunkBytes {
		end := offset + chunkBytes
		if end > len(data) {
			end = len(data)
		}
		message := &store.WriteBlobRequest{Offset: int64(offset), Data: data[offset:end], Finish: end == len(data)}
		message.Digest, message.SizeBytes = digest, int64(len(data))
		// What broke a stream is told by CloseAndRecv, not by Send.
		if err := stream.Send(message); err != nil || message.Finish {
			break
		}
	}
	_, err = stream.CloseAndRecv()
	return err
}

// Import has the store fetch a checkpoint and admit it; `told` hears how far it is.
func (c *Client) Import(
	ctx context.Context, request *store.ImportAdapterRequest, told func(*store.ImportProgress),
) (*store.Version, error) {
	var version *store.Version
	err := c.retried(ctx, func(ctx context.Context) error {
		// The same request comes back to an import that is under way.
		stream, err := c.Adapters.ImportAdapter(ctx, request)
		if err != nil {
			return err
		}
		for {
			message, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if progress := message.GetProgress(); progress != nil {
				told(progress)
			} else {
				c.wrote(message.GetRevision())
				version = message.GetVersion()
			}
		}
	})
	return version, err
}

// Generate streams the events of an answer: started, chunks, and finished for each choice. An error of `each` ends it.
// It is served by what this client wrote before.
func (c *Client) Generate(
	ctx context.Context, request *worker.GenerateRequest, each func(*worker.GenerateResponse) error,
) error {
	request = c.asWritten(request)
	begun := false
	return c.retried(ctx, func(ctx context.Context) error {
		stream, err := c.Worker.Generate(ctx, request)
		for err == nil {
			var message *worker.GenerateResponse
			if message, err = stream.Recv(); err == nil {
				begun = true
				err = each(message)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if begun {
			// After the first event a second run could answer something else.
			return final{err}
		}
		return err
	})
}

// Complete brings a whole answer.
func (c *Client) Complete(ctx context.Context, request *worker.GenerateRequest) (*worker.CompleteResponse, error) {
	whole := &worker.CompleteRequest{Request: c.asWritten(request)}
	var answer *worker.CompleteResponse
	err := c.retried(ctx, func(ctx context.Context) (err error) {
		answer, err = c.Worker.Complete(ctx, whole)
		return err
	})
	return answer, err
}

func (c *Client) asWritten(request *worker.GenerateRequest) *worker.GenerateRequest {
	if request.GetMinRevision() >= c.Revision() {
		return request
	}
	request = proto.Clone(request).(*worker.GenerateRequest)
	request.MinRevision = c.Revision()
	return request
}

// final is an error after which nothing is tried again.
type final struct{ error }

func (c *Client) retried(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	tenant := c.options.Tenant
	if tenant != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "hotslot-tenant", tenant)
	}
	for attempt := 1; ; attempt++ {
		err := call(ctx)
		if err == nil {
			return nil
		}
		last, isFinal := err.(final)
		if isFinal {
			err = last.error
		}
		if _, isStatus := status.FromError(err); !isStatus {
			return err // The caller's own.
		}
		failed := asError(err)
		if isFinal || !failed.MayRetry() || attempt >= c.options.Attempts {
			return failed
		}
		pause := firstPause << uint(attempt-1)
		if pause > longestPause {
			pause = longestPause
		}
		pause = pause/2 + time.Duration(rand.Int63n(int64(pause/2)))
		if failed.RetryAfter > pause {
			pause = failed.RetryAfter
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return failed
		}
	}
}
