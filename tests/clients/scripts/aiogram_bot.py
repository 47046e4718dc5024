"""aiogram as its documentation says: bot.download gives a file without a name, which the SDK sends on."""

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path

from aiogram import Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from telegram_stand_in import TOKEN, telegram

openai = importlib.import_module(os.environ.get("SDK", "openai"))
client = openai.AsyncOpenAI()
dispatcher = Dispatcher()


@dispatcher.message(F.voice)
async def handle_voice(message, bot):
    voice = await bot.download(message.voice)
    transcript = await client.audio.transcriptions.create(file=voice, model="whisper-1")
    await message.reply(transcript.text)
    await dispatcher.stop_polling()


async def main():
    with telegram(Path(sys.argv[1]).read_bytes()) as (url, replies):
        session = AiohttpSession(api=TelegramAPIServer.from_base(url))
        await dispatcher.start_polling(Bot(TOKEN, session=session), handle_signals=False)
    print(json.dumps({"reply": replies[0]}))


asyncio.run(main())
