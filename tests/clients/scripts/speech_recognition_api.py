"""SpeechRecognition as its documentation says: recognize_openai, which finds OPENAI_BASE_URL by itself."""

import json
import sys

import speech_recognition as sr

recognizer = sr.Recognizer()
with sr.AudioFile(sys.argv[2]) as source:
    audio = recognizer.record(source)
transcripts = {
    "default": recognizer.recognize_openai(audio),
    "language": recognizer.recognize_openai(audio, model="gpt-4o-transcribe", language="en", prompt="Shopping."),
}
print(json.dumps(transcripts))
